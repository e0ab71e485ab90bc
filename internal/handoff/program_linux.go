package handoff

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// peerPid returns the process that has made a socket pair, or 0; see SO_PEERCRED in
// unix(7).
func peerPid(c *net.UnixConn) (pid int) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
				pid = int(cred.Pid)
			}
		})
	}
	return pid
}

// parentOf says what the process pid runs, beside this one.
func parentOf(pid int) parent {
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	if sameFile(exe, "/proc/self/exe") {
		return parent{same: true, program: Ours}
	}
	p := parent{same: samePath(exe) || sameCommandLine(pid)}
	if p.same {
		p.program = programOf(exe)
	}
	return p
}

// runs returns what a process is built on.
func runs(pid int) Program { return programOf(fmt.Sprintf("/proc/%d/exe", pid)) }

// samePath reports whether a process's program has the path of ours, where another file
// may have been before: the kernel then says that it is deleted.
func samePath(exe string) bool {
	theirs, err := os.Readlink(exe)
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/exe")
	return err == nil && strings.TrimSuffix(theirs, " (deleted)") == strings.TrimSuffix(ours, " (deleted)")
}

func sameCommandLine(pid int) bool {
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	ours, err := os.ReadFile("/proc/self/cmdline")
	return err == nil && len(ours) > 0 && bytes.Equal(ours, theirs)
}
