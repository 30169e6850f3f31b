# Every target works from a fresh clone: what it needs is built once and cached under ~/.cache/tunesmith (or $XDG_CACHE_HOME).
.DEFAULT_GOAL := help
PYTHON ?= python3

.PHONY: help
help: ## show this
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-54s %s\n", $$1, $$2}'

.PHONY: demo
demo: ## one apply, one served model, on a real two-node Kubernetes (or on $KUBECONFIG)
	$(PYTHON) -m dev.demo

.PHONY: down
down: ## remove the development cluster: processes, mounts, interfaces, namespaces, cgroups
	$(PYTHON) -m dev.cluster down --purge

.PHONY: test
test: ## lint, types, unit, integration, and the chain end to end
	$(PYTHON) -m dev.checks machine build lint types unit integration trainer serving e2e down

.PHONY: test-all
test-all: ## everything there is, for hours; parts that have passed at this very commit are not run again
	$(PYTHON) -m dev.checks --go-on machine build lint types unit integration integration-long crash trainer trainer-long serving e2e rollouts drills images e2e-images down

.PHONY: test-fast
test-fast: ## the part that needs no kubelet
	$(PYTHON) -m dev.checks build lint types unit integration trainer serving

.PHONY: images
images: ## build the operator's, trainer's and serving image with buildah, into OCI archives in the cache
	$(PYTHON) -m dev.checks images

.PHONY: test-images
test-images: ## run the chain once with those images (30 GB of disk)
	$(PYTHON) -m dev.checks images e2e-images down

.PHONY: lint types unit integration integration-long trainer trainer-long serving e2e rollouts drills
lint types unit integration integration-long trainer trainer-long serving e2e rollouts drills: ## one part of the tests
	$(PYTHON) -m dev.checks $@

.PHONY: bench-operator
bench-operator: ## requests, latency, CPU and memory of the operator at 200 and 1000 FineTuneJobs (ARGS="--sizes 50 --idle 20" for a short run)
	PYTHONPATH=operator:contract $$($(PYTHON) -m dev.venv operator) -m tests.bench.operator $(ARGS)

.PHONY: bench-goodput
bench-goodput: ## a simulated week of training on 8 nodes that fail, through the real attempt code (ARGS="--every-steps 50")
	PYTHONPATH=operator:contract $$($(PYTHON) -m dev.venv operator) -m tests.bench.goodput $(ARGS)

.PHONY: bench-crash
bench-crash: ## kill the operator around each write of a life; all must end alike (ARGS="--only NAME" repeats one, "--sample 20" takes fewer)
	PYTHONPATH=operator:contract $$($(PYTHON) -m dev.venv operator) -m dev.bench.crash $(ARGS)

.PHONY: bench-train
bench-train: ## the Train stage's speed beside the same TRL script by hand, and what its checkpoints cost (ARGS="--steps 20 --every 5 --repeats 1" for a short run)
	$(PYTHON) -m dev.bench.train $(ARGS)

.PHONY: bench-gate
bench-gate: ## how often a gate passes and fails what it must not, simulated (ARGS="--samples 200" for a short run)
	PYTHONPATH=trainer-image:contract $$($(PYTHON) -m dev.venv trainer) -m dev.bench.gate $(ARGS)

.PHONY: bench-memory
bench-memory: ## Prepare's estimate of a step's memory beside real steps on the CPU (ARGS="--only llama" for one architecture, "--only shared" for strategies)
	PYTHONPATH=trainer-image:contract $$($(PYTHON) -m dev.venv trainer) -m tests.bench.memory $(ARGS)

.PHONY: generate
generate: ## write what is generated: CRDs, the chart's copies, docs/api.md
	$(PYTHON) -m dev.checks generate

.PHONY: fmt
fmt: ## format the code
	$(PYTHON) -m dev.checks fmt
