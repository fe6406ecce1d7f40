// The number of threads that run Go code is ours to choose (app's procs), so that the runtime need
// not keep files of the control group open; names of its memory mappings are of no use here.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Pasta and passt connect a network namespace or a virtual machine to the host's network without
// privileges. This one binary is each of several programs, by the name it is called by.
package main

import (
	"os"
	"path/filepath"
	"strings"

	"fusilli/internal/app"
	"fusilli/internal/pesto"
	"fusilli/internal/qrap"
)

// version is set by the build (-ldflags -X).
var version = "devel"

func main() { os.Exit(run(os.Args)) }

// run is the program that argv[0] names, and returns its exit status.
func run(argv []string) int {
	switch name := filepath.Base(argv[0]); {
	case strings.Contains(name, "qrap"):
		return qrap.Main(argv[1:], os.Environ(), os.Stderr)
	case strings.Contains(name, "pesto"):
		return pesto.Main(argv, os.Stdout, os.Stderr, version)
	}
	return app.Main(argv, version)
}
