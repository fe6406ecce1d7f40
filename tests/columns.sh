#!/bin/sh
# columns.sh: comments of Go files end at 100 columns. A tab counts as four.
set -eu
cd "$(dirname "$0")/.."
git ls-files -z '*.go' | xargs -0 awk '
	/^\t*\/\// && !/^\/\/go:/ {
		line = $0
		gsub(/\t/, "    ", line)
		if (length(line) > 100) { print FILENAME ":" FNR ": " length(line) " columns"; bad = 1 }
	}
	END { exit bad }'
