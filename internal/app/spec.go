package app

import (
	"fmt"
	"os/user"
	"runtime"
	"slices"
	"strconv"

	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/internal/sandbox"
)

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
	if cfg.VhostUser {
		s.Sandbox = sandbox.Vhost
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
