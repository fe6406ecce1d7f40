//go:build race

package sandbox

// raceEnabled reports whether this is a program for tests, which nobody need be warned of.
const raceEnabled = true
