#!/usr/bin/env bash
# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# Sets up, builds, runs every test. Arguments go on to dotnet test:  ./eng/test.sh --filter TestCategory=Fixtures
# The last line is "N passed, N failed", with ", N skipped" where there are any.
set -uo pipefail
cd "$(dirname "$0")/.."
./eng/setup.sh || exit 1

dotnet build Peft.MLNet.sln --nologo -v q -clp:NoSummary -nodeReuse:false || { echo "The build failed." >&2; echo "0 passed, 1 failed"; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
dotnet test Peft.MLNet.sln --no-build --nologo "$@" 2>&1 | tee "$log"
code=${PIPESTATUS[0]}

# One line a test assembly: "Passed!  - Failed:     0, Passed:    25, Skipped:     0, ..."
count() { sed -n "s/.*- Failed: .*$1: *\([0-9]*\),.*/\1/p" "$log" | awk '{n += $1} END {print n + 0}'; }
failed=$(sed -n 's/.*- Failed: *\([0-9]*\),.*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
passed=$(count Passed) skipped=$(count Skipped)
if [ "$code" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
if [ "$((passed + failed + skipped))" = 0 ]; then echo "No test ran." >&2; code=1; fi
line="$passed passed, $failed failed"
[ "$skipped" = 0 ] || line="$line, $skipped skipped"
echo "$line"
exit "$code"
