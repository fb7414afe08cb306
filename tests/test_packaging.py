"""What a user gets from a wheel, and what importing costs."""

import subprocess
import sys
import zipfile

from helpers import REPOSITORY

SHIPPED = (
    ("datasets", "cards/*.yaml"),
    ("datasets", "*.py"),
    ("pipelines", "*"),
    ("privacy_reports", "**/*.j2"),
    ("privacy_reports", "*.css"),
    ("privacy_reports", "*.schema.json"),
    ("dpeq", "**/*.py"),
)


def test_the_wheel_carries_cards_recipes_template_and_schema(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for room, pattern in SHIPPED:
        for path in (REPOSITORY / room).glob(pattern):
            if path.is_file():
                relative = path.relative_to(REPOSITORY).as_posix()
                assert (relative if room == "dpeq" else f"dpeq/_assets/{relative}") in names, relative
    assert not any("__pycache__" in name for name in names)


def test_importing_dpeq_and_reading_a_configuration_import_nothing_heavy():
    code = (
        "import sys, dpeq, dpeq.cli, dpeq.config, dpeq.privacy.plan; dpeq.config.load_config('demo');"
        "print([m for m in ('torch', 'escnn', 'opacus', 'monai', 'pydicom') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_lower_rooms_never_import_higher_ones():
    forbidden = {
        "groups.py": ("training", "reporting", "cli", "config", "pipeline", "data", "privacy", "evaluation", "console"),
        "representations.py": ("nn", "models", "training", "reporting", "cli", "config", "pipeline", "data", "privacy"),
        "nn": ("training", "reporting", "cli", "config", "pipeline", "data", "privacy", "evaluation", "models"),
        "models": ("training", "reporting", "cli", "config", "pipeline", "data", "privacy", "evaluation"),
        "data": ("training", "reporting", "cli", "config", "pipeline", "privacy", "evaluation", "nn", "models"),
        "privacy": ("training", "reporting", "cli", "config", "pipeline", "evaluation", "data", "models"),
        "evaluation": ("training", "reporting", "cli", "config", "pipeline"),
        "training": ("reporting", "cli", "pipeline", "console"),
    }
    for room, names in forbidden.items():
        place = REPOSITORY / "dpeq" / room
        for path in [place] if place.is_file() else sorted(place.glob("*.py")):
            for line in path.read_text().splitlines():
                if line.strip().startswith(("from dpeq.", "import dpeq.")):
                    assert line.split("dpeq.")[1].split(".")[0].split(" ")[0] not in names, f"{path.name}: {line}"
