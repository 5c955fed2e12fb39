# Every target installs what it needs in a fresh clone. Required are Python >= 3.11, make and the package index.
# Nothing is written outside the clone and $(CACHE).
PYTHON ?= python3
CACHE  ?= $(HOME)/.cache/pidone
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export PIP_CACHE_DIR := $(CACHE)/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start Python a thousand times; without byte code each start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: containerds help env demo test nightly check format schema doze image image-root controller-image controller-root lock old eureka peers nacos etcd consul zookeeper apps cluster prober otlp registries clean

help:
	@echo "make demo    run three pods, a repo and a Eureka on this machine, and check each step (KEEP=1: keep them running;"
	@echo "             REGISTRY=etcd: the same with another registry, if its server is installed)"
	@echo "make test    run all tests that this machine can run; each skipped test names the command that enables it"
	@echo "make nightly run a million random steps of the engine, and thousands of faults in a real process 1"
	@echo "make check   run ruff, mypy strict, import-linter"
	@echo "make env     create the development environment in .venv"
	@echo "make doze    write build/doze and build/pidone, static programs, for x86-64 and arm64 too (needs no compiler)"
	@echo "make image   write build/image.oci.tar from Debian packages and wheels, without a registry (ARCH=amd64 or arm64)"
	@echo "make controller-image  write build/controller.oci.tar in the same way"
	@echo "make schema  write the JSON Schemas in schema/, the CRDs in k3d/crds/, and lists in docs/language.md and docs/metrics.md"
	@echo "make eureka  build the real Eureka server for demo and tests (needs Java 17 and Maven)"
	@echo "make peers   build Netflix' own Eureka server and client, and Spring's with users, for tests (needs Java 17 and Maven)"
	@echo "make etcd    build etcd 3.6 and readers of its layouts for demo and tests (needs Go 1.26)"
	@echo "make zookeeper  build Curator's reader for tests with real ZooKeeper servers (needs Java 17 and Maven)"
	@echo "make nacos   build Nacos servers and their official client for tests (needs Java 17 and Maven)"
	@echo "make cluster build a Kubernetes API server and node for tests (needs Go 1.26; takes ten minutes once)"
	@echo "make prober  build the kubelet's prober for tests (needs Go 1.26)"
	@echo "make containerds  fetch three versions of containerd for tests into the cache (needs Debian)"
	@echo "make consul  fetch a Consul agent and build its client for tests (needs Debian and Go 1.26)"
	@echo "make otlp    build receivers of OpenTelemetry metrics for tests (needs Go 1.26)"
	@echo "make apps    write build/apps.oci.tar, images of the demo's applications (needs Java 17, Maven and Go)"
	@echo "make old     build the image of an earlier version, for tests of pods that are older than their controller"
	@echo "make registries  write the tables of docs/registries.md from the results of the last tests"
	@echo "make lock    write requirements.lock from the two pyproject.toml"

env: $(READY)

$(READY): requirements.lock pyproject.toml controller/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pidone needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . -e controller
	@touch $@

demo: $(READY) quick-doze
	@$(BIN)/python -m tests.demo $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(KEEP),--keep)

# Tests mostly wait, so more workers than cores pay off; WORKERS=0 runs one test after the other.
WORKERS ?= 4

test: $(READY) quick-doze
	$(BIN)/python -m pytest -p tests.groups -n $(WORKERS) -q $(ARGS)

# Takes about half an hour: new random examples in each run, and many times as many examples and faults.
NIGHTLY := $(BIN)/python -m pytest -o faulthandler_timeout=7200

nightly: $(READY) quick-doze
	PIDONE_TEST_RANDOM=1 PIDONE_TEST_STEPS=1000000 PIDONE_TEST_ENDURANCE=60 PIDONE_TEST_AWAY=20 \
	  $(NIGHTLY) -q -s tests/engine/test_invariants.py tests/engine/test_faults.py \
	  tests/pod/test_faults.py tests/demo
	PIDONE_TEST_ENDURANCE=10 $(NIGHTLY) -q tests/pid1
	PIDONE_TEST_RANDOM=1 PIDONE_TEST_ENDURANCE=20 $(NIGHTLY) -p tests.groups -n $(WORKERS) -q \
	  tests/actions tests/cli tests/controller tests/generate tests/http tests/language tests/metrics tests/plan

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Generates everything that is made of the parts in schema/. A test fails if this was forgotten.
schema: $(READY)
	@$(BIN)/python -m pidone.generate.assembly
	@$(BIN)/python -m pidone.generate.reference docs/language.md
	@$(BIN)/python -m pidone.generate.metrics docs/metrics.md

# The static programs of images and wheels. doze has 21 kB, and 12 KiB of memory; pidone contains it. The first run also
# builds a C library by ziglang.
MACHINES := x86_64 aarch64
doze: $(foreach name,doze pidone,$(MACHINES:%=build/$(name)-%))
	install build/doze-$(shell uname -m) build/doze
	install build/pidone-$(shell uname -m) build/pidone
	install $^ pidone/pid1/
	@if [ -d $(BIN) ]; then install build/pidone $(BIN)/; fi

build/doze-%: pidone/pid1/doze.c build/zig/.ready
	$(call zig,$*)

build/pidone-%: pidone/pid1/pidone.c pidone/pid1/doze.c build/zig/.ready
	$(call zig,$*)

build/snapshot-%: k3d/image/snapshot.c build/zig/.ready
	$(call zig,$*)

zig = ZIG_GLOBAL_CACHE_DIR=$(CACHE)/zig ZIG_LOCAL_CACHE_DIR=$(CACHE)/zig build/zig/bin/python -m ziglang cc \
  -target $(1)-linux-musl -Oz -static -s -o $@ $<

build/zig/.ready: requirements-zig.lock
	@$(PYTHON) -m venv --clear build/zig
	@build/zig/bin/python -m pip install -q --require-hashes -r requirements-zig.lock
	@touch $@

# Lets demo and tests start soon: uses the programs that exist, or builds them by the system's compiler. Without a
# compiler pods without tasks stay in Python.
.PHONY: quick-doze
quick-doze:
	@mkdir -p build
	@for name in doze pidone; do \
	if [ -x build/$$name ] && [ ! pidone/pid1/doze.c -nt build/$$name ] && [ ! pidone/pid1/$$name.c -nt build/$$name ]; then :; \
	elif command -v $(CC) >/dev/null; then $(CC) -Os -static -s -o build/$$name pidone/pid1/$$name.c 2> build/$$name.log \
	    || { cat build/$$name.log; exit 1; }; \
	else echo "no C compiler: pods without tasks stay in Python; make doze needs none"; fi; done
	@if [ -x build/pidone ]; then install build/pidone $(BIN)/; fi

# The sandbox image, from Debian packages and wheels. k3d/Dockerfile builds the same files. Needs apt and buildah.
ARCH       ?= amd64
IMAGE_ROOT ?= build/image-root
MACHINE     = $(if $(filter arm64,$(ARCH)),aarch64,x86_64)

image: image-root
	@$(BIN)/python k3d/image/build.py pack --arch $(ARCH) --root $(IMAGE_ROOT) \
	  --out build/image$(if $(filter amd64,$(ARCH)),,-$(ARCH)).oci.tar

# SNAPSHOT=1 adds the snapshot of Python, see docs/footprint.md. It is made for amd64, on amd64.
SNAPSHOT   ?= 0

image-root: $(READY) build/doze-$(MACHINE) build/empty-$(MACHINE)/libexpat.so.1 $(if $(filter 1amd64,$(SNAPSHOT)$(ARCH)),build/snapshot-x86_64)
	@CACHE=$(CACHE) $(BIN)/python k3d/image/build.py root --arch $(ARCH) --out $(IMAGE_ROOT) \
	  $(if $(filter 0,$(SNAPSHOT)),--no-snapshot)

# A library that contains nothing: EMPTY in k3d/image/build.py.
build/empty-%/libexpat.so.1: build/zig/.ready
	@mkdir -p $(@D) && touch $(@D)/empty.c
	@ZIG_GLOBAL_CACHE_DIR=$(CACHE)/zig ZIG_LOCAL_CACHE_DIR=$(CACHE)/zig build/zig/bin/python -m ziglang cc \
	  -target $*-linux-gnu -shared -nostdlib -s -Wl,-soname,$(@F) -o $@ $(@D)/empty.c

# The controller's image, in the same way. k3d/Dockerfile.controller builds the same files.
CONTROLLER_ROOT ?= build/controller-root

controller-image: controller-root
	@$(BIN)/python k3d/image/controller.py pack --arch $(ARCH) --root $(CONTROLLER_ROOT) \
	  --out build/controller$(if $(filter amd64,$(ARCH)),,-$(ARCH)).oci.tar

controller-root: $(READY)
	@CACHE=$(CACHE) $(BIN)/python k3d/image/controller.py root --arch $(ARCH) --out $(CONTROLLER_ROOT)

# The demo's applications and their images. Needs Java 17, Maven and Go, and apt and buildah like make image.
apps: $(READY) build/static-server
	mvn -B -q -f k3d/apps/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package
	@CACHE=$(CACHE) $(BIN)/python k3d/apps/build.py --out build/apps.oci.tar

build/static-server: $(wildcard k3d/apps/static-server/*)
	cd k3d/apps/static-server && CGO_ENABLED=0 GOTOOLCHAIN=local go build -trimpath -ldflags "-s -w" -o $(CURDIR)/$@

# The source tree and the image of the last commit before the controller for clusters. Tests run pods and controllers of
# different versions against each other.
OLD      := 3d1da04
OLD_KEPT := $(CACHE)/old/$(OLD)-$(ARCH).oci.tar
old: build/old/build/image.oci.tar

build/old/build/image.oci.tar: $(READY) build/zig/.ready
	@rm -rf build/old && mkdir -p build/old/build && ln -s ../../zig build/old/build/zig
	@git archive $(OLD) | tar -x -C build/old
	@if [ -f $(OLD_KEPT) ]; then cp $(OLD_KEPT) $@; else \
	  $(MAKE) -o build/zig/.ready -o $(CURDIR)/$(READY) -C build/old image VENV=$(CURDIR)/$(VENV) ARCH=$(ARCH) && \
	  mkdir -p $(dir $(OLD_KEPT)) && cp $@ $(OLD_KEPT).new && mv $(OLD_KEPT).new $(OLD_KEPT); fi

eureka: k3d/apps/discovery/target/discovery.jar

k3d/apps/discovery/target/discovery.jar: k3d/apps/pom.xml k3d/apps/discovery/pom.xml $(shell find k3d/apps/discovery/src -type f 2>/dev/null)
	mvn -B -q -f k3d/apps/discovery/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package

# Netflix' own server in a servlet container, of which tests start two, and its official client; Spring's server with
# users.
peers: tests/eureka/java/target/peers-1.jar tests/eureka/spring/target/secured.jar

tests/eureka/java/target/peers-1.jar: tests/eureka/java/pom.xml $(shell find tests/eureka/java/src -type f 2>/dev/null)
	mvn -B -q -f tests/eureka/java/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package

tests/eureka/spring/target/secured.jar: k3d/apps/pom.xml tests/eureka/spring/pom.xml $(shell find tests/eureka/spring/src -type f 2>/dev/null)
	mvn -B -q -f tests/eureka/spring/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package

# etcd, and the libraries that define the layouts of keys in it. One program, cached like the next one.
etcd: $(READY)
	@$(BIN)/python -m tests.etcd.program

# Curator and Spring Cloud's payload, which read what pidone writes. The servers of the tests are Debian's.
zookeeper: tests/zookeeper/java/target/zookeeper-1.jar

tests/zookeeper/java/target/zookeeper-1.jar: tests/zookeeper/java/pom.xml $(shell find tests/zookeeper/java/src -type f 2>/dev/null)
	mvn -B -q -f tests/zookeeper/java/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package
# Two versions of a Nacos server, and of its official client.
nacos: tests/nacos/java/reader-3/target/lib

tests/nacos/java/reader-3/target/lib: $(wildcard tests/nacos/java/pom.xml tests/nacos/java/*/pom.xml) $(shell find tests/nacos/java -path '*/src/*' -type f 2>/dev/null)
	mvn -B -q -f tests/nacos/java/pom.xml -Dmaven.repo.local=$(CACHE)/m2 package
	@touch $@

# One program. It is cached by the content of its Go module.
cluster: $(READY)
	@$(BIN)/python -m tests.cluster.program

# The kubelet's prober, which tests compare with pidone's. It shares most packages with the cluster.
prober: $(READY)
	@$(BIN)/python -m tests.probes.kubelet

# Several versions of containerd for the tests of sandboxes: Debian's packages, unpacked in the cache.
containerds: $(READY)
	@CACHE=$(CACHE) $(BIN)/python -m tests.cri.containerds

# A Consul agent for tests, which is Debian's package, unpacked in the cache; and Consul's own client, which reads it.
consul: $(READY)
	@CACHE=$(CACHE) $(BIN)/python -m tests.consul.real

# The receivers of OpenTelemetry metrics of the collector and of Prometheus. One program, cached like the others. Its
# compiler needs 75 seconds of a core once.
otlp: $(READY)
	@$(BIN)/python -m tests.otlp.program

lock: $(READY)
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q uv
	build/lock/bin/uv --cache-dir $(CACHE)/uv pip compile -q --universal --generate-hashes --no-header \
	  --group dev pyproject.toml -o requirements.lock
	echo ziglang | build/lock/bin/uv --cache-dir $(CACHE)/uv pip compile -q --universal --generate-hashes --no-header \
	  - -o requirements-zig.lock

# The tables of docs/registries.md, from the results of the last tests. A cell without a result stays as it is.
registries: $(READY)
	@$(BIN)/python -m tests.results

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
