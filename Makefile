# Hearth's commands. `make help` lists them. Everything can be repeated: what is there already is skipped.
#
# Cargo runs as you; images, capsules and tests need root and go through sudo when you are not.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export PATH := $(PATH):$(HOME)/.cargo/bin
export HEARTH_CACHE ?= /var/cache/hearth
export HEARTH_TEST_PYTHON ?= $(HEARTH_CACHE)/test-venv/bin/python
# Not every host has the memory controller in cgroup v2; the e2e tests see the same inside a capsule, which has it.
export HEARTH_TEST_SKIP ?= cgroup-memory

comma := ,
empty :=
space := $(empty) $(empty)
# Settings that must survive sudo.
KEPT := $(sort $(filter HEARTH_%,$(.VARIABLES)) DATABASE_URL RUST_LOG CI CARGO_MANIFEST_DIR)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=$(subst $(space),$(comma),$(KEPT)))
# Cargo starts test programs with this in front.
RUNNER := $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='$(SUDO)')

# One profile for the demo, the tests and the benches, so that everything is compiled once.
CARGO := cargo
PROFILE := --release
HEARTH := target/release/hearth
# The guest daemon runs where there are no libraries, from the first instruction on.
GUEST_FLAGS := -C target-feature=+crt-static -C relocation-model=static
GUEST_TARGET := x86_64-unknown-linux-gnu

SCRIPTS := setup .ci/run migrations/prepare images/build $(wildcard images/*/recipe) images/code/customize images/code/smoke \
	images/test/run images/test/guest e2e/lab/run e2e/lab/init e2e/lab/guest

say = printf '[make] %s\n' '$(1)'

.PHONY: help
help: ## what each command does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build images ## from a fresh clone to code answered by capsules; stops cleanly
	@$(call say,running the demo)
	@$(SUDO) $(HEARTH) demo

.PHONY: up
up: build images ## start Hearth in the foreground; prints URL, key and a curl line
	@$(SUDO) $(HEARTH) up

.PHONY: down
down: ## stop a Hearth that runs in the background, and sweep
	@$(SUDO) $(HEARTH) down

.PHONY: doctor
doctor: build ## what this machine has, what it lacks, how to get it
	@$(SUDO) $(HEARTH) doctor

.PHONY: setup
setup: ## install the Debian packages and the Rust toolchain, if missing
	@./setup

.PHONY: build
build: guest ## compile all programs (about ten minutes the first time)
	@$(call say,compiling the programs)
	@$(CARGO) build $(PROFILE) --workspace

.PHONY: guest
guest: setup
	@$(call say,compiling the guest daemon)
	@RUSTFLAGS='$(GUEST_FLAGS)' $(CARGO) build $(PROFILE) --package hearth-envd --target $(GUEST_TARGET) \
		--target-dir target/guest

.PHONY: images
images: guest ## build kernel, initramfs, root filesystem (about four minutes the first time)
	@$(SUDO) images/build --envd target/guest/$(GUEST_TARGET)/release/envd

.PHONY: check
check: lint ## format, lints, unit tests: a few minutes, no root
	@$(call say,unit tests)
	@$(CARGO) test $(PROFILE) --workspace --lib --bins

.PHONY: lint
lint: setup
	@$(call say,format)
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --manifest-path agent/fuzz/Cargo.toml --check
	@$(call say,clippy)
	@$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck --external-sources $(SCRIPTS); \
		elif [[ ,$$HEARTH_TEST_SKIP, == *,shellcheck,* ]]; then \
			echo 'test skipped: shellcheck: it is not installed; ./setup --test installs it'; \
		else echo 'this needs `shellcheck`: ./setup --test installs it (HEARTH_TEST_SKIP=shellcheck skips it)'; exit 1; fi

# Every tier runs, also after one that failed; the totals come last. What the machine lacks fails a test by name unless
# HEARTH_TEST_SKIP lists it (e2e/skip); a tier whose capability is listed does not run.
.PHONY: test
test: build images ## set-up as needed, then all tests, with totals
	@./setup --test
	@log=target/test.log; : >$$log; failed=; \
	tier() { \
		printf '[make] tests: %s\n' "$$1"; local name=$$1 needs=$$2; shift 2; \
		if [[ -n $$needs && ,$$HEARTH_TEST_SKIP, == *,$$needs,* ]]; then \
			echo "test skipped: $$needs: the whole tier $$name" | tee -a $$log; return; \
		fi; \
		"$$@" 2>&1 | tee -a $$log || failed="$$failed $$name"; \
	}; \
	tier static "" make --no-print-directory lint; \
	tier images images $(SUDO) images/test/run; \
	tier workspace "" env $(RUNNER) $(CARGO) test $(PROFILE) --workspace --exclude hearth-e2e --no-fail-fast; \
	tier e2e capsules env $(RUNNER) $(CARGO) test $(PROFILE) --package hearth-e2e --no-fail-fast -- --test-threads=1; \
	tier kvm-lab kvm-lab make --no-print-directory kvm-lab; \
	tier fuzz fuzz make --no-print-directory fuzz; \
	awk '/test result: / { programs++; for (i = 2; i <= NF; i++) { \
			if ($$i ~ /^passed/) passed += $$(i-1); if ($$i ~ /^failed/) broken += $$(i-1); \
			if ($$i ~ /^ignored/) ignored += $$(i-1) } } \
		END { printf "test totals: %d passed; %d failed; %d ignored; in %d programs\n", \
			passed, broken, ignored, programs }' $$log; \
	awk -F ': ' '/^test skipped: / { skipped++; if (!names[$$2]++) list = list " " $$2 } \
		END { printf "test skips: %d%s\n", skipped, skipped ? ", for lack of:" list : "" }' $$log; \
	if [[ -n $$failed ]]; then echo "test result: FAILED in:$$failed"; exit 1; fi; \
	echo 'test result: ok in all tiers (static, images, workspace, e2e, kvm-lab, fuzz)'

.PHONY: kvm-lab
kvm-lab: build images ## test Firecracker on a real KVM inside an emulated machine (part of `make test`)
	@./setup --test
	@lab=$$($(CARGO) test $(PROFILE) --package hearth-e2e --test lab --no-run --message-format=json \
		| sed -n 's/.*"executable":"\([^"]*\/lab-[^"]*\)".*/\1/p'); \
	$(SUDO) e2e/lab/run "$$lab"

.PHONY: queries
queries: setup ## after a change of a query or of the schema: write what queries are checked against when compiled
	@migrations/prepare

FUZZ_SECONDS ?= 10
.PHONY: fuzz
fuzz: setup ## feed broken files and handshakes to the agent's readers, $FUZZ_SECONDS each (part of `make test`)
	@./setup --test
	@cd agent && for target in manifest layer handshakes; do \
		mkdir -p fuzz/corpus/$$target; \
		$(CARGO) fuzz run --sanitizer none --release $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=2048 -verbosity=0 2>&1 \
			| { grep -v -e '# Uses:' -e 'ecommended dictionary' || true; }; \
		echo "fuzz target $$target: ok"; \
	done

.PHONY: bench
bench: build images ## measure; writes target/bench.json and target/bench-lifecycle.json
	@$(SUDO) target/release/hearth-loadtest bench
	@$(SUDO) target/release/hearth-loadtest lifecycle

.PHONY: clean
clean: ## remove what was compiled; images stay in $HEARTH_CACHE (images/build --prune)
	@$(SUDO) rm -rf target agent/fuzz/target
