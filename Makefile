# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up themselves (system packages, virtual environment, build) and are quick
# the second time. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
CLANG ?= clang
BPF_SOURCES := $(wildcard bpf/*.bpf.c)
BPF_OBJECTS := $(patsubst bpf/%.bpf.c,nodeagent/bpf/objects/%.bpf.o,$(BPF_SOURCES))
MULTIARCH := $(shell gcc -print-multiarch 2>/dev/null)
BPF_ARCH := $(subst x86_64,x86,$(subst aarch64,arm64,$(shell uname -m)))
BPF_FLAGS := -O2 -g -target bpf -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Wextra -Werror=implicit-function-declaration \
	-Wno-unused-parameter -mcpu=v3 -Ibpf/include $(if $(MULTIARCH),-idirafter /usr/include/$(MULTIARCH))
FUZZ_SECONDS ?= 20

##@ Everyday
.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: export GOAL = demo
demo: build ## two nodes, before and after the label, everything measured in that run
	@.venv/bin/qanat demo $(DEMO_FLAGS)

.PHONY: test
test: export GOAL = test
test: build ## unit, core, bpf and netns tests (all set-up included)
	@$(PY) tools/tiers.py unit core bpf netns

.PHONY: test-unit test-core test-bpf test-netns test-interop
test-unit test-core test-bpf test-netns test-interop: test-%: build
	@$(PY) tools/tiers.py $*
test-unit: ## no privileges, no network: seconds
test-core: ## the C engine through its Python door, real sockets and TLS
test-bpf: ## kernel programs on this kernel
test-netns: ## whole meshes of network namespaces
test-interop: ## against a stock Envoy

.PHONY: test-k8s
test-k8s: build ## on a real Kubernetes of two nodes (compiled once, from Go modules; about 17 minutes, then 24 for the tests)
	@tools/k8s.sh
	@$(PY) tools/tiers.py k8s k8s-e2e k8s-e2e-apart

.PHONY: test-k8s-e2e test-k8s-e2e-apart
test-k8s-e2e test-k8s-e2e-apart: build
	@tools/k8s.sh
	@$(PY) tools/tiers.py $(@:test-%=%)
test-k8s-e2e: ## the part of it that needs two nodes
test-k8s-e2e-apart: ## likewise, on a cluster of their own: tests that boot nodes, reinstall and replace the mesh

.PHONY: test-k8s-api
test-k8s-api: build ## the part of it that needs etcd and kube-apiserver alone
	@tools/k8s.sh kube-apiserver
	@$(PY) tools/tiers.py k8s

.PHONY: lint
lint: venv ## ruff, mypy --strict, import contracts, clang-format
	@tools/lint.sh

.PHONY: format
format: venv ## rewrite sources in the project's format
	@.venv/bin/ruff check --fix --quiet . || true
	@.venv/bin/ruff format --quiet .
	@git ls-files -z '*.c' '*.h' | xargs -0r clang-format -i

.PHONY: sanitize
sanitize: deps ## the C engine under ASan+UBSan, TSan and valgrind
	@tools/sanitize.sh

.PHONY: fuzz
fuzz: build ## each fuzzer for FUZZ_SECONDS (20)
	@tools/fuzz.sh $(FUZZ_SECONDS)

.PHONY: perf-quick
perf-quick: build ## figures against plain TCP and Envoy, as ratios within one run
	@$(PY) -m perf.quick

DURATION ?= 180
.PHONY: soak-certs
soak-certs: build ## DURATION (180) s of traffic while certificates, roots, clocks and the CA change; none may fail
	@$(PY) -m tests.soak.certs --seconds $(DURATION)

.PHONY: perf-paths
perf-paths: build ## connections without a proxy against plain TCP without a mesh
	@$(PY) -m perf.paths

.PHONY: perf-k8s
perf-k8s: build ## one node's programs against the API of 100, 1,000 and 5,000 nodes (about eight minutes)
	@$(PY) -m perf.k8s.scale

.PHONY: images
images: build ## build/images/qanat.tar, from this machine's files without a container engine
	@$(PY) daemonset/images/local.py

.PHONY: kind kind-down minikube minikube-down
kind: build ## a cluster of kind with the mesh, a demo application and a proof (needs kind and docker); kind-down ends it
	@tools/demo_cluster.sh kind
minikube: build ## the same with minikube
	@tools/demo_cluster.sh minikube
kind-down minikube-down: %-down:
	@tools/demo_cluster.sh $* down

##@ Steps
.PHONY: check
check: ## can Qanat run on this machine? what is missing, with the fix
	@tools/setup.sh check

.PHONY: deps
deps: check ## system packages (only what is missing)
	@tools/setup.sh deps

.PHONY: venv
venv: deps ## .venv with the versions of pyproject.toml
	@tools/setup.sh venv

.PHONY: bpf
bpf: deps $(BPF_OBJECTS) ## kernel programs

nodeagent/bpf/objects/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/include/*.h) Makefile | deps
	@mkdir -p $(@D)
	@echo "  bpf $<"
	@$(CLANG) $(BPF_FLAGS) -c $< -o $@.tmp && { llvm-strip -g $@.tmp 2>/dev/null || true; } && mv $@.tmp $@

CNI_PLUGIN := build/cni/qanat-cni
.PHONY: cni
cni: deps $(CNI_PLUGIN) ## the CNI plugin, static

$(CNI_PLUGIN): daemonset/cni/qanat-cni.c Makefile | deps
	@mkdir -p $(@D)
	@echo "  cc $<"
	@gcc -O2 -g -std=gnu11 -Wall -Wextra -Wconversion -Wshadow -Werror -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
		-static -o $@.tmp $< -ljansson && strip $@.tmp && mv $@.tmp $@

.PHONY: ext
ext: venv ## the C engine and libbpf for Python
	@$(PY) cffi_build.py

.PHONY: build
build: bpf cni ext ## everything that `qanat` needs

.PHONY: proto
proto: venv ## regenerate mesh/protocol/*_pb2.py
	@$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mesh/protocol/*.proto

.PHONY: manifests
manifests: ## render daemonset/manifests from the Helm chart
	@tools/helm.sh --render

.PHONY: clean
clean: ## remove what was built (not .venv)
	rm -rf build nodeagent/bpf/objects ztunnel/dataplane/_zt*.so nodeagent/bpf/_libbpf*.so
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf
