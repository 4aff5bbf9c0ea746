# SPDX-License-Identifier: Apache-2.0
"""`qanat up`: a mesh on one machine. Nodes and pods are network namespaces, the API objects are YAML files.

In reading order: names (addresses) > objects (the YAML) > network > kubeproxy > pods > supervisor."""
