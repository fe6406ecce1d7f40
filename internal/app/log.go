package app

import (
	"fmt"
	"os"

	"go.uber.org/zap/zapcore"

	"fusilli/config"
	"fusilli/internal/logging"
	"fusilli/internal/process"
)

// openLog returns the launcher's logger, once the command line is read: standard error, and a log
// file or, unless there is one or all is shown anyway, the system's log. The translator gets the
// same from it.
func openLog(start *process.Start, cfg *config.Config, version string) (*logging.Logger, error) {
	o := logOptions(start, cfg)
	switch {
	case cfg.Log.File != "":
		exe, err := os.Executable()
		if err != nil {
			exe = os.Args[0]
		}
		f, err := logging.CreateFile(cfg.Log.File, fmt.Sprintf("%s %s: %s (%d)", cfg.Mode, version, exe, os.Getpid()))
		if err != nil {
			return nil, process.Failf("Couldn't open log file %s: %s", cfg.Log.File, process.Reason(err))
		}
		start.Pass(f)
		o.File = logging.NewFile(f, cfg.Log.Size, start.Origin)
	case cfg.Log.Level < config.LevelDebug:
		if s, err := logging.DialSyslog(logging.SyslogPath); err == nil {
			start.Pass(s)
			o.Syslog = s
		}
	}
	return logging.New(os.Stderr, o), nil
}

// inheritLog returns the logger of a process that the launcher started.
func inheritLog(start *process.Start, cfg *config.Config) *logging.Logger {
	o := logOptions(start, cfg)
	if f, ok := start.File(logging.FileName); ok {
		o.File = logging.NewFile(f, cfg.Log.Size, start.Origin)
	}
	if s, ok := start.File(logging.SyslogName); ok {
		o.Syslog = s
	}
	return logging.New(os.Stderr, o)
}

func logOptions(start *process.Start, cfg *config.Config) logging.Options {
	return logging.Options{Level: level(cfg.Log.Level), Origin: start.Origin, Ident: cfg.Mode.String()}
}

func level(l config.Level) zapcore.Level {
	switch l {
	case config.LevelWarning:
		return zapcore.WarnLevel
	case config.LevelDebug:
		return zapcore.DebugLevel
	case config.LevelTrace:
		return logging.TraceLevel
	}
	return zapcore.InfoLevel
}
