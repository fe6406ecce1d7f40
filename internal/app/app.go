// Package app is pasta and passt as programs: it turns a command line into a running translator.
//
// Main is called in each of the processes that package process describes. The launcher checks the
// command line, opens what needs the user's own rights, and starts the translator; the translator
// detects the host's network, opens the guest's link and runs the parts until one of them ends.
// What carries packets is in packages actors and splice, which know nothing of this one.
package app

import (
	"context"
	"os"
	"runtime"

	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/sandbox"
	"fusilli/internal/slirp"
)

func init() {
	if slirp.Named(os.Args) && os.Getenv(process.StageVariable) == "" {
		// The launcher gives up rights of its own thread, which has to be the first one
		// (process.Spec.Renounce).
		runtime.LockOSThread()
	}
}

// Main runs the program that argv[0] names (passt, pasta or slirp4netns), in the role this process
// was started for, and returns its exit status. version is what --version prints.
func Main(argv []string, version string) int {
	start, err := process.Begin()
	if err != nil {
		return fail(err.Error())
	}
	cfg, front, err := commandLine(argv)
	if err != nil {
		return refuse(err)
	}
	if front != nil && (front.Help || front.Version) {
		return showSlirp(front, version)
	}
	spec := spec(cfg)
	if front != nil && front.APISocket != "" {
		spec.LatePorts = true // those that clients of the API ask for
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
		return launchSlirp(start, cfg, front, spec, version)
	}
	return launch(start, cfg, spec, version)
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
