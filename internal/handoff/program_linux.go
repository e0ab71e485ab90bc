package handoff

import (
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
	const self = "/proc/self"
	proc := fmt.Sprintf("/proc/%d", pid)
	if sameFile(proc+"/exe", self+"/exe") {
		return parent{same: true, program: Ours}
	}
	same := func(read func(proc string) string) bool {
		ours := read(self)
		return ours != "" && read(proc) == ours
	}
	p := parent{same: same(programPath) || same(commandLine)}
	if p.same {
		p.program = runs(pid)
	}
	return p
}

// runs returns what a process is built on.
func runs(pid int) Program { return programOf(fmt.Sprintf("/proc/%d/exe", pid)) }

// programPath returns the path of a process's program, where another file may be by now:
// the kernel then says that it is deleted.
func programPath(proc string) string {
	path, _ := os.Readlink(proc + "/exe")
	return strings.TrimSuffix(path, " (deleted)")
}

func commandLine(proc string) string {
	line, _ := os.ReadFile(proc + "/cmdline")
	return string(line)
}
