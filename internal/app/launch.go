package app

import (
	"errors"
	"fmt"
	"os"

	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/slirp"
)

// launch is the part of the process the user started.
func launch(start *process.Start, cfg *config.Config, spec process.Spec, version string) int {
	warn(cfg.Warnings)
	switch {
	case cfg.Action == config.PrintHelp:
		return printed(config.Help(os.Stdout, cfg.Mode, os.Args[0]))
	case cfg.Action == config.PrintVersion:
		return printed(config.Version(os.Stdout, cfg.Mode, version))
	case cfg.Action == config.PrintCapabilities:
		return printed(config.Capabilities(os.Stdout))
	}
	guest, err := takeGuest(cfg)
	if err != nil {
		return fail(err.Error())
	}
	if err := process.CloseStray(); err != nil {
		return fail("Failed to close files leaked by parent: " + err.Error())
	}
	if cfg.RunAs != nil {
		u, err := lookUp(cfg.RunAs)
		if err != nil {
			return fail("Invalid --runas option: " + cfg.RunAs.Text)
		}
		spec.RunAs = u
	}
	log, err := openLog(start, cfg, version)
	if err != nil {
		return fail(err.Error())
	}
	defer log.Close()
	if guest == nil && cfg.Mode == config.Passt {
		if guest, err = listenGuest(cfg, log.Logger); err != nil {
			log.Error(err.Error())
			return 1
		}
	}
	if guest != nil {
		defer guest.Close()
		start.Pass(guest)
	}
	ctl, err := listenControl(cfg)
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	if ctl != nil {
		defer ctl.Close()
		start.Pass(ctl)
	}
	status, err := process.Launch(start, spec, log.Logger)
	if err != nil {
		log.Error(err.Error())
	}
	return status
}

// refuse says what is wrong with a command line.
func refuse(err error) int {
	var usage *config.UsageError
	if errors.As(err, &usage) {
		warn(usage.Warnings)
		fail(err.Error())
		if usage.Suggestion != "" {
			fail("Did you mean '" + usage.Suggestion + "'?")
		}
		return fail("Try '" + os.Args[0] + " --help' for all options.")
	}
	var slirpUsage *slirp.UsageError
	if errors.As(err, &slirpUsage) {
		if slirpUsage.Text != "" {
			fail(slirpUsage.Text)
		}
		slirp.Help(os.Stderr)
		return 1
	}
	var plain *config.Error
	if errors.As(err, &plain) {
		warn(plain.Warnings)
	}
	return fail(err.Error())
}

func warn(lines []string) {
	for _, line := range lines {
		fmt.Fprintln(os.Stderr, line)
	}
}

func fail(text string) int {
	fmt.Fprintln(os.Stderr, text)
	return 1
}

func printed(err error) int {
	if err != nil {
		return fail("standard output: " + err.Error())
	}
	return 0
}
