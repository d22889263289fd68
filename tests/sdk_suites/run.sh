#!/bin/sh
# run.sh SDK ENVIRONMENT [PYTEST OPTION]...: fetch the suite of the installed SDK, run it three times, compare.
set -eu
sdk=$1 environment=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
python=$environment/bin/python

if [ "$sdk" = google ]; then # its suite is in the package; what needs recordings of its maker's is left out
  cd "$("$python" -c "import google.genai as sdk; print(sdk.__path__[0])")/.."
  for part in afc client common errors gaos interactions live mcp transformers types; do
    set -- "$@" "genai/tests/$part"
  done
else
  version=$("$python" -c "import $sdk; print($sdk.__version__)")
  "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$environment/src" "$sdk==$version"
  tar -xzf "$environment/src/$sdk-$version.tar.gz" -C "$environment/src"
  cd "$environment/src/$sdk-$version"
fi
for clients in plain classes wrapped; do
  rm -f "$environment/$clients.json"
  PYTHONPATH=$here:. SUITE_SDK=$sdk SUITE_CLIENTS=$clients SUITE_RESULTS=$environment/$clients.json \
    "$python" -m pytest -q -o addopts= -p suite_plugin -p no:cacheprovider -p no:tokenmeter --timeout 120 "$@" || true
done
cd "$environment"
"$python" "$here/compare.py" plain.json classes.json wrapped.json
