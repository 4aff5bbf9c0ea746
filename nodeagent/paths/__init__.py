# SPDX-License-Identifier: Apache-2.0
"""What the kernel may decide by itself: which addresses are the mesh's, which pairs may talk
directly, which may not."""
