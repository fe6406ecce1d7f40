package app

import (
	"fmt"
	"net"
	"os"

	"go.uber.org/zap"

	"fusilli/internal/logging"
	"fusilli/internal/process"
	"fusilli/internal/unixsock"
)

// sockets are what a launcher opens at paths and passes on to the translator.
type sockets struct {
	start *process.Start
	files []*os.File
	paths []string
}

// pass passes on the socket l, which listens at path.
func (s *sockets) pass(l *os.File, path string) {
	s.start.Pass(l)
	s.files, s.paths = append(s.files, l), append(s.paths, path)
}

// fileSuffix is what the file of a socket has in its name beyond the socket.
const fileSuffix = "-file"

// passForUser is pass for a socket that the translator takes with takeSocket.
func (s *sockets) passForUser(l *os.File, path string) error {
	s.pass(l, path)
	f, err := unixsock.File(l.Name()+fileSuffix, path)
	if err != nil {
		return process.Failf("Failed to open socket %s: %s", path, process.Reason(err))
	}
	s.start.Pass(f)
	s.files = append(s.files, f)
	return nil
}

// close is for when the translator has the sockets.
func (s *sockets) close() {
	for _, f := range s.files {
		f.Close()
	}
}

// remove is for when there will be no translator: nothing is left behind.
func (s *sockets) remove() {
	for _, path := range s.paths {
		os.Remove(path) // nobody else has taken it while we listen there
	}
}

// takeSocket takes over the socket of that name, nil if the launcher has not passed one on. Only
// clients of this user and of root are accepted.
func takeSocket(name string, env *process.Env, log *zap.Logger) (net.Listener, error) {
	f, ok := env.File(name)
	if !ok {
		return nil, nil
	}
	defer f.Close()
	file, ok := env.File(name + fileSuffix)
	if !ok {
		return nil, fmt.Errorf("%s socket: its file was not passed on", name)
	}
	l, err := net.FileListener(f)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s socket: %w", name, err)
	}
	return unixsock.ForUser(l, file, logging.Limit(log.With(zap.String("socket", name)))), nil
}
