// The number of threads that run Go code is ours to choose (procs), so that the runtime need not
// keep files of the control group open; and what it calls its memory is of no interest to anybody.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Pasta and passt connect a network namespace or a virtual machine to the host's network
// without privileges. This one program acts as either, by the name it is called by.
//
// This package reads the command line, starts the parts and waits for them. Everything
// that could be of use elsewhere is in the other packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"fusilli/config"
	"fusilli/internal/pesto"
	"fusilli/internal/process"
	"fusilli/internal/qrap"
	"fusilli/internal/sandbox"
	"fusilli/internal/slirp"
)

// version is set by the build (-ldflags -X).
var version = "devel"

func init() {
	if slirp.Named(os.Args) && os.Getenv(process.StageVariable) == "" {
		runtime.LockOSThread() // what main does to its thread, it does to the first (process.Spec.Renounce)
	}
}

func main() { os.Exit(run()) }

// run plays the part this process was started for and returns its exit status.
func run() int {
	if strings.Contains(filepath.Base(os.Args[0]), "qrap") {
		return qrap.Main(os.Args[1:], os.Environ(), os.Stderr)
	}
	if strings.Contains(filepath.Base(os.Args[0]), "pesto") {
		return pesto.Main(os.Args, os.Stdout, os.Stderr, version)
	}
	start, err := process.Begin()
	if err != nil {
		return fail(err.Error())
	}
	cfg, front, err := commandLine(os.Args)
	if err != nil {
		return refuse(err)
	}
	if front != nil && (front.Help || front.Version) {
		return showSlirp(front)
	}
	spec := spec(cfg)
	if front != nil && front.APISocket != "" {
		spec.LatePorts = true // those it is asked for
	}
	if spec.Filter, err = sandbox.ParseAction(os.Getenv(process.FilterVariable)); err != nil {
		return fail(process.FilterVariable + ": " + err.Error())
	}
	if start.Role == process.Translator {
		log := inheritLog(start, cfg)
		defer log.Close()
		return process.Translate(start, spec, log, func(ctx context.Context, env *process.Env) error {
			return translate(ctx, cfg, env, log.Logger)
		})
	}
	if front != nil {
		return launchSlirp(start, cfg, front, spec)
	}
	return launch(start, cfg, spec)
}

// commandLine reads a command line, in the language of the program that argv[0] names. The options
// are nil unless that is slirp4netns.
func commandLine(argv []string) (*config.Config, *slirp.Options, error) {
	if !slirp.Named(argv) {
		cfg, err := config.Parse(argv)
		return cfg, nil, err
	}
	o, err := slirp.Parse(argv)
	if err != nil || o.Help || o.Version {
		return nil, o, err
	}
	if err := resolveOutbound(o); err != nil {
		return nil, o, err
	}
	return o.Config(), o, nil
}

// launch is the part of the process the user started.
func launch(start *process.Start, cfg *config.Config, spec process.Spec) int {
	warn(cfg.Warnings)
	switch {
	case cfg.Action == config.PrintHelp:
		return printed(config.Help(os.Stdout, cfg.Mode, os.Args[0]))
	case cfg.Action == config.PrintVersion:
		return printed(config.Version(os.Stdout, cfg.Mode, version))
	case cfg.Action == config.PrintCapabilities:
		return printed(config.Capabilities(os.Stdout))
	case cfg.VhostUser:
		return fail("Not built in this version: --vhost-user")
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
	log, err := openLog(start, cfg)
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

// spec is what the process model needs to know of a configuration.
func spec(cfg *config.Config) process.Spec {
	t, debug := cfg.Target, cfg.Log.Level >= config.LevelDebug
	s := process.Spec{
		Command:          t.Args,
		Procs:            procs(runtime.NumCPU()),
		KeepUserNS:       t.UserNS == config.KeepUserNS,
		HostName:         cfg.Hostname,
		Foreground:       cfg.Foreground,
		Debug:            debug && cfg.Log.File == "",
		LogElsewhere:     debug && cfg.Log.File != "",
		KeepStderr:       cfg.Log.Stats != 0,
		StayWithoutNetNS: t.NoQuit,
		PIDFile:          cfg.PIDFile,
		ChrootFallback:   cfg.ChrootFallback,
		LatePorts:        latePorts(cfg),
	}
	s.Alone = cfg.Mode == config.Passt || cfg.FD >= 0
	if cfg.Mode == config.Passt {
		s.Sandbox = sandbox.Passt
	}
	if t.UserNS == config.JoinUserNS {
		s.UserNS = t.UserNSPath
	}
	if !cfg.Commanded() {
		s.NetNS = t.NetNSPath
	}
	return s
}

// latePorts reports whether ports can come to be listened on while the program runs.
func latePorts(cfg *config.Config) bool {
	auto := slices.ContainsFunc(cfg.Ports, func(p config.PortSpec) bool { return p.Auto })
	return cfg.ControlPath != "" || cfg.Mode == config.Pasta && auto
}

// lookUp finds the numbers of a user and group. Root by name is refused: whoever wants
// that says 0.
func lookUp(r *config.RunAs) (*process.User, error) {
	u := &process.User{UID: int(r.User.ID), GID: int(r.User.ID)}
	if r.User.Name != "" {
		account, err := user.Lookup(r.User.Name)
		if err != nil {
			return nil, err
		}
		if u.UID, err = strconv.Atoi(account.Uid); err != nil {
			return nil, err
		}
		if u.UID == 0 {
			return nil, fmt.Errorf("%s is root", r.User.Name)
		}
		if u.GID, err = strconv.Atoi(account.Gid); err != nil {
			return nil, err
		}
	}
	if g := r.Group; g != nil {
		u.GID = int(g.ID)
		if g.Name != "" {
			group, err := user.LookupGroup(g.Name)
			if err != nil {
				return nil, err
			}
			if u.GID, err = strconv.Atoi(group.Gid); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// refuse says what is wrong with a command line.
func refuse(err error) int {
	var usage *config.UsageError
	if errors.As(err, &usage) {
		warn(usage.Warnings)
		fail(err.Error())
		config.Help(os.Stderr, usage.Mode, os.Args[0]) // nowhere else to report to
		return 1
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
