package app

import (
	"errors"
	"fmt"
	"os"

	"go.uber.org/zap"

	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/slirp"
	"fusilli/internal/unixsock"
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
	if guest != nil {
		defer guest.Close()
		start.Pass(guest)
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
	made := &sockets{start: start}
	defer made.close()
	if err = checkHost(cfg, log.Logger); err == nil {
		err = openSockets(cfg, guest, made, log.Logger)
	}
	if err != nil {
		made.remove()
		log.Error(err.Error())
		return 1
	}
	spec.Made = made.paths
	status, err := process.Launch(start, spec, log.Logger)
	if err != nil {
		log.Error(err.Error())
	}
	return status
}

// checkHost finds what is wrong with cfg on this host before anything is made for it. The
// translator looks again, and finds what takes longer to see.
func checkHost(cfg *config.Config, log *zap.Logger) error {
	c4, c6 := &cfg.IPv4, &cfg.IPv6
	outbound := c4.OutboundIf != "" || c6.OutboundIf != ""
	if cfg.SpliceOnly && outbound {
		return autodetect.ErrUnusable
	}
	host := &autodetect.Host{}
	if cfg.Interface != "" || outbound || !c4.Enabled {
		var err error
		if host, err = autodetect.Detect(detection(cfg)); err != nil {
			return err
		}
	} else {
		host.V4.Index = autodetect.Local
		if c6.Enabled && autodetect.IPv6Available() {
			host.V6.Index = autodetect.Local
		}
	}
	_, err := checkRules(cfg, host, log)
	return err
}

// openSockets opens the sockets that cfg asks for, with the rights of the user who started us,
// unless guest is one already.
func openSockets(cfg *config.Config, guest *os.File, made *sockets, log *zap.Logger) error {
	if guest == nil && cfg.Mode == config.Passt {
		l, err := listenGuest(cfg, log)
		if err != nil {
			return err
		}
		made.pass(l, cfg.VM.Socket)
	}
	if cfg.ControlPath != "" {
		l, err := unixsock.Listen(controlName, cfg.ControlPath, controlQueue)
		if err != nil {
			return err
		}
		return made.passForUser(l, cfg.ControlPath)
	}
	return nil
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
