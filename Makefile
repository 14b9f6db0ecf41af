# Every target makes the environment that it needs; a fresh clone, Python 3.10 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
SCENE_VENV := .venv-scene
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-backend test-scene test-slow lint models brain-extraction measure clean

demo: $(VENV)/ready
	$(BIN)/uadbench demo --out uadbench-demo

test: test-backend test-scene

test-backend: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest Testing/backend -n 2 -m "not slow"

test-scene: $(SCENE_VENV)/ready
	$(SCENE_VENV)/bin/python -m pytest Testing/scene

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest Testing/backend -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# DATA is the folder that the paths of Resources/Splits/t1w.csv start from.
models: $(VENV)/ready
	for method in intensity_norm denoising_autoencoder disyre; do \
	  id=$$(echo $$method-t1w-compact | tr _ -); \
	  $(BIN)/uadbench train $$method --cohort Resources/Splits/t1w.csv --data $(DATA) --contrast T1w --preset compact --seed 0 --licence Apache-2.0 --out Resources/Models/$$id && \
	  $(BIN)/uadbench calibrate Resources/Models/$$id --healthy Resources/Splits/t1w.csv --data $(DATA) || exit 1; \
	done

# MAPS is a folder of whole-head label maps with FreeSurfer numbers.
brain-extraction: $(VENV)/ready
	$(BIN)/python -m UADBenchLib.training.brain_extraction --maps $(MAPS) --cohort Resources/Splits/t1w.csv --data $(DATA) --out Resources/BrainExtraction --workers 2

measure: $(VENV)/ready
	$(BIN)/python Testing/measure.py --data $(DATA) --out docs/figures
	$(BIN)/python Testing/measure_heads.py --data $(DATA) --maps $(MAPS) --out docs/figures

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(SCENE_VENV)/ready: constraints.txt
	$(PYTHON) -m venv $(SCENE_VENV)
	$(SCENE_VENV)/bin/python -m pip install --quiet -c constraints.txt slicer-core pytest numpy pillow
	touch $@

clean:
	rm -rf $(VENV) $(SCENE_VENV) build dist *.egg-info uadbench-demo
