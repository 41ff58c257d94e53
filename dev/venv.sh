# Sourced by dev/quickstart and dev/test: makes the virtual environments of the checkout and sets VENV and IMAGE.
#
# AIRFLOW_VERSION (3.3.2) and PYTHON (python3) choose; there is one pair of environments per choice below
# .dev/venvs, made from dev/constraints and reused until those or pyproject.toml change. Nothing outside the
# checkout is touched.
#
# `make_modal_venv VERSION` makes a small one more: that modal and what dev/local_modal needs, without Airflow.
#
# IMAGE stands in for the image of Modal's containers: Airflow and everything else, but not this checkout, so that
# what does not travel to the containers is missing there. VENV sees the same packages and the checkout.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
AIRFLOW_VERSION=${AIRFLOW_VERSION:-3.3.2}
PYTHON=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }

python_version() {
    if ! "$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; then
        say "No Python found as '$PYTHON': install Python 3.10 or later, or set PYTHON to its path."
        return 2
    fi
}

make_venv() {
    local version pins stamp
    version=$(python_version) || return
    pins=$ROOT/dev/constraints/airflow-$AIRFLOW_VERSION-py$version.txt
    if [ ! -f "$pins" ]; then
        say "Airflow $AIRFLOW_VERSION is not set up for Python $version ($PYTHON). There are:"
        (cd "$ROOT/dev/constraints" && ls airflow-*.txt | sed 's/^airflow-/  Airflow /; s/-py/ with Python /; s/.txt$//') >&2
        say "Set PYTHON to such an interpreter, for example PYTHON=python3.12."
        return 2
    fi
    VENV=$ROOT/.dev/venvs/airflow-$AIRFLOW_VERSION-py$version
    IMAGE=$VENV-image
    stamp=$(cat "$pins" "$ROOT/pyproject.toml" "$ROOT/airflow_provider_modal/__init__.py" "$ROOT/dev/venv.sh" | cksum)
    if [ "$(cat "$VENV/.stamp" 2>/dev/null)" = "$stamp" ]; then return 0; fi

    say "Installing Airflow $AIRFLOW_VERSION for Python $version below .dev/venvs; once, a minute or two ..."
    mkdir -p "$ROOT/.dev/venvs"
    rm -rf "$VENV"
    if ! { [ -x "$IMAGE/bin/python" ] || "$PYTHON" -m venv "$IMAGE"; } || ! "$PYTHON" -m venv --without-pip "$VENV"; then
        rm -rf "$IMAGE" "$VENV"
        say "'$PYTHON -m venv' failed: install your system's venv package (Debian, Ubuntu: apt install python3-venv)."
        return 1
    fi >&2
    # uv installs ten times faster than pip; it is fetched like any other package.
    "$IMAGE/bin/python" -m pip install --quiet --disable-pip-version-check uv >&2 || return 1
    # Bytecode is compiled now: otherwise every container would do it again.
    "$IMAGE/bin/uv" pip install --quiet --compile-bytecode --python "$IMAGE/bin/python" -r "$pins" >&2 || return 1
    "$IMAGE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/image.pth"
    "$IMAGE/bin/uv" pip install --quiet --no-deps --python "$VENV/bin/python" -e "$ROOT" >&2 || return 1
    ln -sf "$IMAGE/bin/ruff" "$VENV/bin/ruff" && ln -sf "$IMAGE/bin/uv" "$VENV/bin/uv" || return 1
    sed "1s|.*|#!$VENV/bin/python|" "$IMAGE/bin/airflow" >"$VENV/bin/airflow" && chmod +x "$VENV/bin/airflow" || return 1
    printf '%s' "$stamp" >"$VENV/.stamp"
}

# Sets MODAL_VENV. Uses uv of the first pair, which must exist.
make_modal_venv() {
    local version pins stamp
    version=$(python_version) || return
    pins=$ROOT/dev/constraints/modal-$1-py$version.txt
    if [ ! -f "$pins" ]; then
        say "modal $1 is not set up for Python $version: add it with dev/constraints/make modal $1 $version."
        return 2
    fi
    MODAL_VENV=$ROOT/.dev/venvs/modal-$1-py$version
    stamp=$(cksum <"$pins")
    if [ "$(cat "$MODAL_VENV/.stamp" 2>/dev/null)" = "$stamp" ]; then return 0; fi
    say "Installing modal $1 for Python $version below .dev/venvs; once, a few seconds ..."
    rm -rf "$MODAL_VENV"
    "$PYTHON" -m venv --without-pip "$MODAL_VENV" >&2 || return 1
    "$IMAGE/bin/uv" pip install --quiet --compile-bytecode --python "$MODAL_VENV/bin/python" -r "$pins" >&2 || return 1
    printf '%s' "$stamp" >"$MODAL_VENV/.stamp"
}

make_venv || exit $?
# Python's own default: bytecode of this checkout is written too.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$ROOT/dev LOCAL_MODAL_PYTHON=$IMAGE/bin/python
