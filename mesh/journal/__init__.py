# SPDX-License-Identifier: Apache-2.0
"""The decision journal: who connected to whom, by which way, what was decided and by which rule.

A directory of numbered segments. `flow` says what is kept, `recorder` counts repeated connections together, `encoding`
makes bytes of that, `segment` frames and chains the bytes by SHA-256, `writer` keeps the directory within its limits,
`reader` reads it back and says whether anything was changed, `export` is the form for people and archives.
"""
