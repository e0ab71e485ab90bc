//go:build unix && !linux

package driver

import (
	"syscall"
	"time"
)

func becomeReaper() {}

// reap waits for the process's end. Only a child's status can be known here.
func (p *Process) reap() {
	defer close(p.exited)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(p.Pid, &status, 0, nil)
		if pid == p.Pid {
			p.status = &status
			return
		}
		if err == syscall.ECHILD && syscall.Kill(p.Pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
