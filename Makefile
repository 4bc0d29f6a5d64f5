# Thin on purpose: every target is one command that a person could type.
# CI calls `make test` (.ci/run), nothing else.

GO       ?= go
tool     := $(GO) tool -modfile=build/tools/go.mod
packages := ./...

.PHONY: run build test race native lint tidy bench long golden

run: build ## the main job: the whole ladder, with the tables at the end
	bin/stagebench run

build: ## the one binary
	$(GO) build -trimpath -o bin/stagebench ./cmd/stagebench

gotestsum := $(tool) gotestsum --format pkgname --format-hide-empty-pkg
# Whole systems of many processes under load. The race detector would make every node ten
# times slower, on hosts of a tenth of a core: `make race` does that, without a bound on time.
systems := ./cmd/stagebench ./sut/node


# What a busy machine has held up gets another chance, and the summary says so; a data race
# gets none.
again := --rerun-fails=2 --rerun-fails-max-failures=30 --rerun-fails-abort-on-data-race

# The order is that of the cost of finding out: lint answers before the long part starts.
test: native lint tidy ## everything that CI checks
	$(gotestsum) $(again) --packages="$$($(GO) list $(packages) | grep -v -e '/cmd/stagebench$$' -e '/sut/node$$' -e '/tidy$$' | tr '\n' ' ')" -- -race -vet=off -p 4 -timeout 30m
	$(gotestsum) $(again) --packages='./workloads/driver/... ./sut/resp' -- -vet=off -count=1 -p 1 -run 'TestConformance|TestPublished' # exactly, which the race detector is too slow for
	$(gotestsum) $(again) --packages='$(systems)' -- -vet=off -count=1 -parallel 3 -timeout 30m

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

golden: ## rewrites the golden files of every package that has some
	$(GO) test $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u) -update
