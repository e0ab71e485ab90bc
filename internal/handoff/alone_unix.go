//go:build unix

package handoff

import (
	"os"
	"syscall"
	"time"
)

// StartAlone starts a successor for a program with a signal loop of its own, which gets
// SIGTERM when it is ready. The program decides what follows: nothing is done about a
// successor that is late, or fails later.
func (g *Generation) StartAlone() (pid int, err error) {
	s, err := g.Start(nil, false)
	if err != nil {
		return 0, err
	}
	go s.followAlone()
	return s.Pid, nil
}

func (s *Successor) followAlone() {
	ready := false
	for e := range s.events {
		switch e {
		case Ready:
			if !ready {
				ready = true
				syscall.Kill(os.Getpid(), syscall.SIGTERM)
			}
		case Ended:
			if !ready && !s.Succeeded() {
				s.TakeBack()
				s.g.Logf("restart failed: %v after %v (before it was ready); still serving with pid %d",
					s.ExitError(), time.Since(s.Started).Round(time.Millisecond), os.Getpid())
			}
			return
		}
	}
}
