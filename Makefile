# Thin on purpose: every target is one command that a person could type.
# CI calls `make test` (.ci/run), nothing else.

GO       ?= go
tool     := $(GO) tool -modfile=build/tools/go.mod
packages := ./...

.PHONY: run build test compile race native lint tidy bench long golden fuzz

run: build ## the main job: the whole ladder, with the tables at the end
	bin/stagebench run

build: ## the one binary
	$(GO) build -trimpath -o bin/stagebench ./cmd/stagebench

gotestsum := $(tool) gotestsum --format pkgname --format-hide-empty-pkg
# The tests of these packages start whole systems of many processes and put load on them.
# They run without the race detector, which is too slow for hosts of a tenth of a core: see
# `make race`. On a busy machine such a test can fail, so a failed one is run once more. The
# end of the output lists these tests. More than three failures fail at once.
systems := ./cmd/stagebench ./sut/node
rerun   := --rerun-fails=1 --rerun-fails-max-failures=3 --rerun-fails-abort-on-data-race \
	--rerun-fails-report=bin/reruns.txt
# The kits of native edges send hundreds of requests to another program. They run alone and without the race detector,
# so that they do not slow down what runs beside them.
kits    := ./sut/nginx ./sut/varnish
# Tests with exact bounds on time or memory, which do not hold with the race detector, and long simulations.
exact   := TestConformance/freeze|TestPublished|TestCoverage|TestOperatingCharacteristics

# The cheapest checks run first. Lint leaves a core idle for a while, so the packages compile
# beside it.
test: native ## everything that CI checks
	@$(MAKE) --no-print-directory -j2 lint compile
	@$(MAKE) --no-print-directory tidy
	@mkdir -p bin && rm -f bin/reruns.txt
	$(gotestsum) --packages="$$($(GO) list $(packages) | grep -v -e '/cmd/stagebench$$' -e '/sut/node$$' \
		-e '/tidy$$' -e '/sut/nginx$$' -e '/sut/varnish$$' | tr '\n' ' ')" -- -race -vet=off -p 2 -timeout 30m
	$(gotestsum) --packages='$(kits)' -- -vet=off -p 1 -timeout 30m
	$(gotestsum) --packages='./workloads/driver/... ./sut/resp ./results/capacity ./results/gate' -- \
		-vet=off -count=1 -p 1 -run '$(exact)'
	$(gotestsum) $(rerun) --packages='$(systems)' -- -vet=off -count=1 -parallel 2 -timeout 60m; status=$$?; \
	if [ -s bin/reruns.txt ]; then echo "Tests that failed and were run again:"; cat bin/reruns.txt; fi; \
	exit $$status

compile: ## all packages, with the race detector
	$(GO) build -race $(packages)

race: ## the tests of whole systems with the race detector
	$(GO) test -race -p 1 -timeout 0 $(systems)

native: ## the servers that tests of native engines need, where they may be installed
	build/native

lint: ## gofumpt, go vet, staticcheck
	@unformatted=$$($(tool) gofumpt -l . ) || exit 1; \
	if [ -n "$$unformatted" ]; then \
		echo "not gofumpt-clean:"; echo "$$unformatted"; \
		echo "run: $(tool) gofumpt -w ."; exit 1; \
	fi
	$(GO) vet $(packages)
	$(tool) staticcheck $(packages)

tidy: ## arrows, words, sizes, state, dependencies, package comments; go.mod itself
	$(GO) test ./cmd/internal/tidy
	$(GO) mod tidy -diff

bench: ## benchmarks of the code itself, not of a system under test
	$(GO) test -run '^$$' -bench . -benchmem $(packages)

long: ## the tests that take minutes; each sets its own bound
	$(GO) test -tags long -timeout 0 $(packages)

# go test takes one fuzz target at a time. A finding ends the run, and go test prints the file that reproduces it.
# By default, go test would spend a minute on making each new input smaller, and run no others meanwhile.
FUZZTIME ?= 5m
fuzz: ## each fuzz target for FUZZTIME, one after the other
	@grep -r --include='*_test.go' '^func Fuzz' . | sed -E 's|/[^/]*:func (Fuzz[A-Za-z0-9_]*).*| \1|' | sort | \
	while read -r package target; do \
		echo "$$package $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "$$package" </dev/null \
			|| exit 1; \
	done

golden: ## rewrites the golden files of every package that has some
	$(GO) test $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u) -update
