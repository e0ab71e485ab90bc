//go:build unix

package driver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// NeedProc skips the test where processes cannot be looked at.
func NeedProc(tb testing.TB) {
	tb.Helper()
	if _, err := os.Stat("/proc/self/fdinfo"); err != nil {
		tb.Skip("no /proc/PID/fdinfo here")
	}
}

// A Descriptor is an open one of a process.
type Descriptor struct {
	FD     int
	Target string // as in "socket:[4711]"
	Flags  int    // O_NONBLOCK, O_CLOEXEC and others
}

func (d Descriptor) String() string {
	return fmt.Sprintf("%d -> %s, flags %#o", d.FD, d.Target, d.Flags)
}

// IsSocket reports whether it is a socket.
func (d Descriptor) IsSocket() bool { return strings.HasPrefix(d.Target, "socket:") }

// Blocking reports whether calls on it block, for everybody who shares it.
func (d Descriptor) Blocking() bool { return d.Flags&syscall.O_NONBLOCK == 0 }

// CloseOnExec reports whether a program that the process starts is without it.
func (d Descriptor) CloseOnExec() bool { return d.Flags&syscall.O_CLOEXEC != 0 }

// Descriptors returns what the process has open.
func (p *Process) Descriptors() (all []Descriptor) {
	p.s.tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		p.s.tb.Fatalf("descriptors of pid %d: %v", p.Pid, err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", p.Pid, e.Name()))
		if err != nil {
			continue
		}
		d := Descriptor{Target: target}
		d.FD, _ = strconv.Atoi(e.Name())
		for _, line := range strings.Split(string(info), "\n") {
			if value, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
				if err != nil {
					p.s.tb.Fatalf("flags of %s in pid %d: %v", e.Name(), p.Pid, err)
				}
				d.Flags = int(flags)
			}
		}
		all = append(all, d)
	}
	return all
}

// Sockets returns those of its descriptors that are sockets.
func (p *Process) Sockets() (sockets []Descriptor) {
	p.s.tb.Helper()
	for _, d := range p.Descriptors() {
		if d.IsSocket() {
			sockets = append(sockets, d)
		}
	}
	return sockets
}

// Zombies returns the children of the process that have ended and were not
// waited for.
func (p *Process) Zombies() (pids []int) {
	for _, pid := range allProcesses() {
		if state, parent, err := stat(pid); err == nil && state == "Z" && parent == p.Pid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Parent returns the process's parent.
func (p *Process) Parent() int {
	p.s.tb.Helper()
	_, parent, err := stat(p.Pid)
	if err != nil {
		p.s.tb.Fatalf("parent of pid %d: %v", p.Pid, err)
	}
	return parent
}

// Env returns the environment with which the process was started.
func (p *Process) Env() []string {
	p.s.tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid))
	if err != nil {
		p.s.tb.Fatalf("environment of pid %d: %v", p.Pid, err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

func allProcesses() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stat reads a process's state and parent.
func stat(pid int) (state string, parent int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	// The name in parentheses may hold anything.
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')'):], []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 2 {
		return "", 0, errors.New("strange stat file")
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err
}
