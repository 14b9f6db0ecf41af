# Every target makes the environment that it needs; a fresh clone, Python 3.10 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
SCENE_VENV := .venv-scene
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-backend test-scene test-slow lint cohorts models models-t1w models-t2w models-flair brain-extraction measure study scaling slicer-pictures clean

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

# DATA is the folder that the paths of Resources/Splits/*.csv start from, MAPS one of whole-head label maps with FreeSurfer
# numbers, COHORTS a new one for what is made of them.
COHORTS ?= cohorts
UADBENCH := $(BIN)/uadbench
NETWORKS := ssl_backbone patchcore reverse_distillation uniad fae context_vae denoising_autoencoder disyre itermask2 andi riad
lower = $(subst _,-,$(1))

# Healthy heads in T2w and FLAIR, since there are no real ones; splits are by label map.
cohorts: $(VENV)/ready
	for split in train validation test; do \
	  mkdir -p $(COHORTS)/maps/$$split && for map in $$(grep ",$$split$$" Resources/Splits/label-maps.csv | cut -d, -f1); do \
	    ln -sf $(abspath $(MAPS))/$$map $(COHORTS)/maps/$$split/ || exit 1; done; done
	$(UADBENCH) synthesise --maps $(COHORTS)/maps/train --healthy 48 --lesions 0 --seed 1 --plan Resources/Splits/train.yaml --out $(COHORTS)/train
	$(UADBENCH) synthesise --maps $(COHORTS)/maps/validation --healthy 12 --lesions 0 --seed 2 --plan Resources/Splits/validation.yaml --out $(COHORTS)/validation
	$(UADBENCH) synthesise --maps $(COHORTS)/maps/test --healthy 8 --lesions 16 --seed 3 --plan Resources/Splits/test.yaml --out $(COHORTS)/test
	$(UADBENCH) synthesise --scans Resources/Splits/t1w.csv --data $(DATA) --split test --lesions 24 --seed 5 --out $(COHORTS)/t1w-lesions

# Steps of the shipped bundles, METHOD-contrast, where they are not the preset's: what there was time for.
STEPS := disyre-t1w:8000 riad-t1w:9000 reverse_distillation-t1w:3600 reverse_distillation-t2w:2400 \
  ssl_backbone-t1w:1300 ssl_backbone-t2w:1300 uniad-t1w:3000 fae-t1w:12000 fae-t2w:4200 \
  denoising_autoencoder-t1w:6600 denoising_autoencoder-t2w:6800 itermask2-t1w:3300 itermask2-t2w:3200 andi-t1w:3800 \
  andi-t2w:4100
steps = $(patsubst $(1):%,--steps %,$(filter $(1):%,$(STEPS)))

# Their options where they are not those of today's preset.
CHANGES := fae-t2w:taps=stem,stage1,stage2 fae-t2w:restore=false fae-t2w:widths=48,80,96 fae-t2w:dropout=0.1 \
  fae-t2w:loss_window=5 fae-t2w:score_window=5 fae-t2w:unit=1.0 patchcore-t2w:place_mm=10.0 \
  reverse_distillation-t2w:averaged=1
changes = $(patsubst $(1):%,--set %,$(filter $(1):%,$(CHANGES)))

# $(call bundle,METHOD,contrast,Contrast,training cohort,validation cohort)
define bundle
	$(UADBENCH) train $(1) --cohort $(4) --contrast $(3) --preset compact $(call changes,$(1)-$(2)) $(call steps,$(1)-$(2)) --seed 0 --licence Apache-2.0 --resume --out Resources/Models/$(call lower,$(1))-$(2)-compact
	$(UADBENCH) calibrate Resources/Models/$(call lower,$(1))-$(2)-compact --healthy $(5)

endef

models: models-t1w models-t2w models-flair

models-t1w: $(VENV)/ready
	$(foreach method,intensity_norm $(NETWORKS),$(call bundle,$(method),t1w,T1w,Resources/Splits/t1w.csv --data $(DATA),Resources/Splits/t1w.csv --data $(DATA)))

models-t2w: cohorts
	$(foreach method,intensity_norm $(NETWORKS),$(call bundle,$(method),t2w,T2w,$(COHORTS)/train/cohort.csv,$(COHORTS)/validation/cohort.csv))

models-flair: cohorts
	$(foreach method,intensity_norm denoising_autoencoder disyre,$(call bundle,$(method),flair,FLAIR,$(COHORTS)/train/cohort.csv,$(COHORTS)/validation/cohort.csv))

# MAPS is a folder of whole-head label maps with FreeSurfer numbers.
brain-extraction: $(VENV)/ready
	$(BIN)/python -m UADBenchLib.training.brain_extraction --maps $(MAPS) --cohort Resources/Splits/t1w.csv --data $(DATA) --out Resources/BrainExtraction --workers 2

measure: $(VENV)/ready $(SCENE_VENV)/ready
	$(BIN)/python Testing/measure.py --data $(DATA) --cohorts $(COHORTS) --run $(COHORTS)/measured --out docs/figures
	$(BIN)/python Testing/measure_levels.py --cohort $(COHORTS)/t1w-lesions/cohort.csv
	$(BIN)/python Testing/draw_methods.py
	$(BIN)/python Testing/measure_heads.py --data $(DATA) --maps $(MAPS) --out docs/figures
	$(SCENE_VENV)/bin/python Testing/measure_scene.py --out docs/figures/scene.csv

# A cohort of scans of nobody with two planted effects, benchmark, bias and report: see docs/benchmark.md.
STUDY_MODELS := disyre-t2w-compact,denoising-autoencoder-t2w-compact,patchcore-t2w-compact,intensity-norm-t2w-compact,uniad-t2w-compact

study: $(VENV)/ready
	$(UADBENCH) synthesise --maps $(COHORTS)/maps/test --healthy 32 --lesions 36 --seed 21 --plan Resources/Splits/study.yaml --out $(COHORTS)/study
	$(UADBENCH) benchmark $(COHORTS)/study --models $(STUDY_MODELS) --out $(COHORTS)/study-run
	$(UADBENCH) bias $(COHORTS)/study-run
	$(UADBENCH) report $(COHORTS)/study-run --cohort $(COHORTS)/study

# How many healthy people the baseline needs: see docs/bias.md.
scaling: $(VENV)/ready
	$(BIN)/python Testing/join_cohorts.py --cohorts $(COHORTS) --contrast T2w --out $(COHORTS)/t2w.csv
	$(UADBENCH) scaling intensity_norm --cohort $(COHORTS)/t2w.csv --contrast T2w --seeds 2 --out $(COHORTS)/growth

# Pictures of the Slicer module, from the sample that it carries.
SAMPLE := UADBench/Resources/SampleData/UADBenchSample
slicer-pictures: $(VENV)/ready $(SCENE_VENV)/ready
	$(BIN)/uadbench detect $(SAMPLE)_T1w.nii.gz --reference $(SAMPLE)_label-lesion_mask.nii.gz --out build/sample
	$(SCENE_VENV)/bin/python Testing/pictures_scene.py --scan $(SAMPLE)_T1w.nii.gz --reference $(SAMPLE)_label-lesion_mask.nii.gz --results build/sample --out docs/figures
	QT_QPA_PLATFORM=offscreen $(BIN)/python Testing/panel.py --out docs/figures

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
