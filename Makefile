# What a learner types. Every verb only calls Python: without make one types the longer line under it.
#
# make lesson 12    run lesson 12; make lesson attention finds it by name
# make train        train a GPT on Shakespeare, about three minutes on two cores
#                   make train ARGS="--device cuda" does it on an NVIDIA GPU; installs what it needs first
# make generate     write text with the model in out/shakespeare
#
# make exercise 12  write workbook/12/: lesson 12 with blanks, for you to fill (FRESH=1: once more)
# make check 12     is it right? make watch 12 checks at every save
# make hint 12      a hint, each time a stronger one
# make solution 12  once all is right: yours beside the reference's
# make progress     how far you are. With MINE=1, lesson, check, train and generate run what you wrote
#
# make test         run all tests, on all cores
# make ptx          see what the GPU's kernels compile to, without a GPU; installs the compiler first
# make bench        compare the speed with PyTorch and others; installs them first
# make clean        remove .venv and __pycache__; what you made in out/ and workbook/ stays
PYTHON ?= python3
PY := .venv/bin/python

NUMBERED := lesson exercise check watch hint solution
VERBS := help $(NUMBERED) progress train generate test ptx bench clean
WORDS := $(wordlist 2,99,$(MAKECMDGOALS))
.PHONY: $(VERBS) no-python

# STEPS=9 or args="--steps 9" would be read by nobody: three minutes of training would start with the defaults.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(firstword $(filter-out ARGS PYTHON N SHELL MINE FRESH WORKBOOK,$(GIVEN)))
ifneq ($(UNKNOWN),)
  $(error nothing here is called $(UNKNOWN). Options go into ARGS: make train ARGS="--steps 9")
endif

help:
	@sed -n 's/^# \( *make\)/  \1/p' Makefile
	@echo; echo '  Options go through ARGS: make train ARGS="--steps 200", and ARGS=--help shows them.'; echo
	@{ $(PY) -m lessons || "$(PYTHON)" -m lessons; } 2>/dev/null || echo "The lessons are in lessons/."

# With MINE=1 the learner's finished functions stand in place of the reference's.
LESSONS := $(PY) -m $(if $(filter 1,$(MINE)),tests mine,lessons)
# Only those who ask for the GPU get its packages.
READY := .venv/$(if $(filter --device=cuda,$(subst --device cuda,--device=cuda,$(strip $(ARGS)))),cuda,ok)

lesson: $(READY)
	@$(LESSONS) $(N) $(ARGS)

exercise check watch hint solution: .venv/ok
	@$(PY) -m tests $@ $(N) $(if $(filter 1,$(FRESH)),fresh) $(if $(filter 1,$(MINE)),mine)

ifneq ($(filter $(NUMBERED),$(firstword $(MAKECMDGOALS))),)
  # `make lesson 12`: make takes 12 for a second thing to build. It becomes N, and a target that does nothing.
  # The other verbs are not defined here, or `make lesson train` would find the lesson and then train.
  N := $(firstword $(WORDS))
  ifneq ($(word 2,$(WORDS)),)
    $(error one lesson at a time: make $(firstword $(MAKECMDGOALS)) $(N))
  endif
  ifneq ($(filter-out help $(NUMBERED),$(N)),)
.PHONY: $(N)
$(N): ; @:
  endif
else
  WRONG := $(firstword $(filter-out $(VERBS) .venv/%,$(MAKECMDGOALS)))
  ifneq ($(WRONG),)
    $(error there is no verb '$(WRONG)'; make lists them. Options go into ARGS: make train ARGS="--steps 9")
  endif

train: $(READY)
	@$(LESSONS) training $(ARGS)

generate: $(READY)
	@$(LESSONS) generation --model out/shakespeare $(ARGS)

progress: .venv/ok
	@$(PY) -m tests progress

test: .venv/ok
	@$(PY) -m pytest $(or $(ARGS),-n auto)

ptx: .venv/ptx
	@$(PY) -m tests.ptx $(ARGS)

bench: .venv/bench
	@$(PY) -m tests.benchmarks $(ARGS)

clean:
	@rm -rf .venv
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed .venv and __pycache__. Kept: out/ (models, pictures) and workbook/ (your answers)."
endif

# The environment is made anew or updated when the lock is newer than it, and when its Python is gone.
SET_UP = @command -v "$(PYTHON)" >/dev/null || { \
  echo "There is no '$(PYTHON)' here, and Python 3.11 or newer is needed. Debian, Ubuntu: \
apt install python3 python3-venv. One elsewhere: make PYTHON=/path/to/python3" >&2; exit 1; }; \
  "$(PYTHON)" environment.py

GONE := $(shell test -x $(PY) || echo no-python)

.venv/ok: requirements.txt $(GONE)
	$(SET_UP)
.venv/bench .venv/cuda .venv/ptx: .venv/%: requirements-%.txt requirements.txt $(GONE)
	$(SET_UP) $*
