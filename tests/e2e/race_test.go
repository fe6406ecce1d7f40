//go:build race

package e2e

// raceEnabled says that the tests, and so the program, run under the race detector.
const raceEnabled = true
