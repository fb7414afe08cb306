#!/bin/sh
# Makes the virtual environment and installs dpeq with its test tools. gfortran is needed once, to build py3nj for escnn.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || {
    echo "dpeq needs Python 3.10 to 3.12 but '$PYTHON' is another; run 'make PYTHON=python3.11 ...'." >&2
    exit 1
}

have_py3nj() { [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import py3nj' 2>/dev/null; }

apt_install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
    else
        return 1
    fi
}

"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv || {
    echo "Python's venv is missing; install it with 'sudo apt-get install python3-venv'." >&2
    exit 1
}
if ! have_py3nj && ! command -v gfortran >/dev/null; then
    echo "Installing gfortran (once, to build a dependency of escnn) ..."
    apt_install gfortran || {
        echo "gfortran is missing; install it with 'sudo apt-get install gfortran', or use environment.yml with conda." >&2
        exit 1
    }
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
echo "Installing dpeq and what it needs into $VENV (a few minutes the first time) ..."
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
