# One verb each, the same by hand and in CI.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

CARGO ?= cargo
# Everything is built with these, so that no verb compiles again what another has compiled.
BUILD := --release --workspace --locked
# With points at which stories kill the daemon; not optimised, which would take longer than all that runs it.
HEARTH_CRATES := hearthd $(addprefix hearth-,$(notdir $(wildcard daemon/crates/*)))
FAULTS := $(BUILD) --features hearthd/faults $(foreach crate,$(HEARTH_CRATES),\
	--config 'profile.release.package.$(crate).opt-level=0' --config 'profile.release.package.$(crate).debug=false')
# A target of its own keeps the shim's flags apart from those of all other crates.
SHIM_TARGET := x86_64-unknown-linux-gnu
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that are missing (root, if any is)
	@deploy/install-deps.sh

.PHONY: build
build: ## Build the daemon and all tools
	$(CARGO) build $(BUILD)

.PHONY: dist
dist: ## Build the daemon and hearthctl as packages ship them: optimised across crates (compiles all dependencies again)
	$(CARGO) build --profile dist --locked -p hearthd -p hearth-ctl --bins

.PHONY: shim
shim: ## Build containerd-shim-hearth-v1, static and small
	HEARTH_REVISION=$$(git rev-parse --short=12 HEAD 2>/dev/null || true) \
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" $(CARGO) build --locked --profile shim \
		--target $(SHIM_TARGET) -p hearth-shim --bin containerd-shim-hearth-v1
	@size=$$(stat -c %s $(TARGET)/$(SHIM_TARGET)/shim/containerd-shim-hearth-v1); \
	test "$$size" -lt 1000000 || { echo "the shim has $$size bytes, over its limit of 1 MB" >&2; exit 1; }

.PHONY: faults
faults: ## Build a daemon that stories kill at points of its choice
	$(CARGO) build $(FAULTS) --bin hearthd-faults

.PHONY: demo
demo: deps build shim ## Run Wasm containers from containerd, and explain what happens (root)
	@$(TARGET)/release/demo

.PHONY: test
test: deps build shim faults ## Run every test, on a real containerd, and a few on 1.7 and 2.x (root)
	$(CARGO) test $(FAULTS) --lib --bins
	$(CARGO) test $(BUILD) --test '*'
	$(CARGO) test $(BUILD) --doc
	@CARGO="$(CARGO)" tests/versions.sh smoke
	@$(TARGET)/release/leftovers

.PHONY: test-matrix
test-matrix: deps build shim faults ## Run every story on containerd 1.6, 1.7 and 2.x (root)
	HEARTH_FAULT_ROUNDS=100 $(CARGO) test $(BUILD) --test it -- --exact kills::a_daemon_killed_at_any_phase_of_a_start_leaves_nothing_behind
	HEARTH_TEST_ALL_CONTAINERDS=1 $(CARGO) test $(BUILD) --test containerd_versions
	@CARGO="$(CARGO)" tests/versions.sh all
	@$(TARGET)/release/leftovers

.PHONY: test-programs
test-programs: deps build shim ## Run the stories of programs, also those with large downloads or compilers (root)
	HEARTH_TEST_PROGRAMS=1 $(CARGO) test $(BUILD) --test it -- programs:: http::languages spin::sdks

.PHONY: fuzz
fuzz: ## Fuzz the parsers for MINUTES in all, or those named by TARGETS (compiles cargo-fuzz once)
	@CARGO="$(CARGO)" tests/fuzz.sh "$(MINUTES)" $(TARGETS)

.PHONY: test-page
test-page: deps build shim ## Look at the status page in Chromium, which is installed for it (root)
	@command -v chromium >/dev/null || apt-get install --yes --quiet --no-install-recommends chromium
	$(CARGO) test $(BUILD) --test it -- watch::a_browser

.PHONY: pictures
pictures: deps build shim ## Take the pictures and answers of dashboards/README.md from a real run (root)
	@command -v chromium >/dev/null || apt-get install --yes --quiet --no-install-recommends chromium
	HEARTH_TEST_PICTURES=1 $(CARGO) test $(BUILD) --test it -- watch::panels

.PHONY: e2e-deps
e2e-deps:
	@tests/e2e/install-deps.sh

.PHONY: e2e
e2e: e2e-deps build shim ## Drive pods on a real Kubernetes with kubectl; STORIES=word for some (root, 20 minutes)
	@HEARTH_E2E_KUBERNETES=$$(tests/e2e/kubernetes.sh) && export HEARTH_E2E_KUBERNETES && \
		$(TARGET)/release/e2e $(STORIES)
	@$(TARGET)/release/leftovers

.PHONY: test-docker
test-docker: deps build shim ## Run the stories of Docker, which is fetched and not installed (root)
	@docker=$$(tests/fetch-docker.sh) && export HEARTH_TEST_DOCKER=$$docker && \
		$(CARGO) test $(BUILD) --test it -- docker::

.PHONY: test-vm
test-vm: build shim ## Install, upgrade, power-cut and fill a whole node in a virtual machine (root, 15 minutes)
	@deploy/install-deps.sh qemu-system-x86 debootstrap kmod cpio busybox-static e2fsprogs
	@tests/vm/run.sh

.PHONY: wasi-testsuite
wasi-testsuite: build shim ## Run the wasi-testsuite in DIR, beside wasmtime, which is built once (root)
	@test -d "$(DIR)" || { echo "name a checkout of the branch prod/testsuite-base: make wasi-testsuite DIR=…" >&2; exit 2; }
	@wasmtime=$$(CARGO="$(CARGO)" bench/wasmtime.sh) && $(TARGET)/release/wasi-testsuite "$(DIR)" --wasmtime "$$wasmtime"

.PHONY: lint
lint: ## Check format, pages, clippy and rustdoc, all warnings denied
	$(CARGO) fmt --all --check
	@tests/docs.sh
	$(CARGO) clippy $(BUILD) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(BUILD) --no-deps --document-private-items

.PHONY: format
format: ## Format all sources
	$(CARGO) fmt --all

.PHONY: deny
deny: ## Check licences, sources and advisories of all dependencies (compiles cargo-deny once)
	@CARGO="$(CARGO)" tests/deny.sh $(DENY_FLAGS)

.PHONY: deb
deb: dist shim ## Make the Debian package
	@deploy/package.sh deb

.PHONY: tarball
tarball: dist shim ## Make the archive with install.sh, for other systems
	@deploy/package.sh tarball

.PHONY: image
image: dist shim ## Make the OCI image of the node installer (needs busybox-static)
	@deploy/image.sh

.PHONY: package-test
package-test: build shim ## Check units, packages and manifests in private roots (root)
	@HEARTH_PROFILE=release deploy/check.sh   # the programs that all other tests run, so that nothing is compiled again

# A floor is the least there is: its shim is built as ours is.
FLOOR_SHIM := $(TARGET)/$(SHIM_TARGET)/shim/containerd-shim-floor-v1
BENCH := $(TARGET)/release/hearth-bench

.PHONY: bench-deps
bench-deps:
	@deploy/install-deps.sh wrk   # the load of `bench-http`

.PHONY: bench-build
bench-build: bench-deps build shim
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" $(CARGO) build --locked --profile shim \
		--target $(SHIM_TARGET) -p hearth-bench-floor

.PHONY: bench
bench: bench-build ## Measure everything, beside the floor and other runtimes; write the README's numbers (root)
	@$(BENCH) all --floor-shim $(FLOOR_SHIM) --large "$$(tests/guests/componentize.sh javascript)" \
		--component "$$(tests/guests/componentize.sh javascript-command)" \
		--json $(TARGET)/bench.json --plots bench/plots --readme README.md

.PHONY: bench-quick
bench-quick: bench-build ## The same in a few minutes, for a look (root)
	@$(BENCH) all --quick --floor-shim $(FLOOR_SHIM) --json $(TARGET)/bench-quick.json

.PHONY: bench-http
bench-http: bench-build ## Measure HTTP components beside `wasmtime serve`, which is built once (root, 25 minutes)
	@wasmtime=$$(bench/wasmtime.sh) && $(BENCH) http --wasmtime "$$wasmtime" \
		--also "$$(tests/guests/componentize.sh javascript)" --also "$$(tests/guests/componentize.sh python)" \
		--json $(TARGET)/bench-http.json

.PHONY: bench-hot
bench-hot: ## Measure the pure parts of the start path with Criterion
	$(CARGO) bench --locked -p hearthd --bench hot

.PHONY: clean
clean: ## Remove all that was built
	$(CARGO) clean
