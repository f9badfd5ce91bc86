# What a developer types. `make install` once, then the rest.
.PHONY: install test slow lint format golden exports conversions docs

install:
	pip install -c constraints.txt -e ".[all,dev]"

test:
	pytest

slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

golden:
	pytest tests/inspection/test_layers.py --update-golden

exports:
	python scripts/exports.py all

conversions:
	python scripts/conversions.py

docs:
	pytest tests/test_api_page.py --update-golden
