package main

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"fusilli/config"
	"fusilli/internal/process"
	"fusilli/tapio"
)

// translate connects the namespace of env as cfg says, and returns when ctx ends or the
// tap is gone.
func translate(ctx context.Context, cfg *config.Config, env *process.Env, log *zap.Logger) error {
	name := cfg.TapName
	if name == "" {
		name = "tap0"
	}
	var tap *tapio.Tap
	err := env.NetNS.Do(func() (err error) {
		tap, err = tapio.OpenTap(name, tapio.TapOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("connect the namespace: %w", err)
	}
	defer tap.Close()
	log.Debug("tap is open", zap.String("tap", tap.Name()))
	if err := env.Ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
