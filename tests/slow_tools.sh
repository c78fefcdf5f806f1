#!/usr/bin/env bash
# What the tests of `make test-slow` need beside Python: a browser, LaTeX, and the checks of axe-core.
# On Debian, as root, what is missing is installed; elsewhere the tests that need it say so and skip.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=()
command -v chromium >/dev/null || packages+=(chromium)
command -v npm >/dev/null || packages+=(npm)
command -v pdflatex >/dev/null ||
    packages+=(texlive-latex-base texlive-latex-recommended texlive-fonts-recommended)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
    else
        echo "not here: ${packages[*]}; tests that need them are skipped" >&2
    fi
fi
.venv/bin/python -c "import playwright" 2>/dev/null ||
    .venv/bin/pip install --quiet --disable-pip-version-check "playwright>=1.45"
[ -e .venv/node_modules/axe-core/axe.min.js ] || ! command -v npm >/dev/null ||
    npm install --silent --no-audit --no-fund --prefix .venv "axe-core@4"
