package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// What /proc tells of processes, see proc(5).

const procKnown = true

// residentMemory is how many bytes of this process are in memory.
func residentMemory() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize()
}

// processGroup returns the members of a process group that run, and those that have ended and were not waited for by a
// member of the group.
func processGroup(group int) (alive, zombies []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	type process struct {
		pid, parent int
		zombie      bool
	}
	var members []process
	for _, name := range stats {
		state, parent, of := processState(name)
		if of != group {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		members = append(members, process{pid, parent, state == "Z" || state == "X"})
	}
	for _, p := range members {
		switch {
		case !p.zombie:
			alive = append(alive, p.pid)
		case slices.ContainsFunc(members, func(of process) bool { return of.pid == p.parent }):
			zombies = append(zombies, p.pid)
		}
	}
	return alive, zombies
}

func processState(name string) (state string, parent, group int) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", 0, 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // the name before may hold anything
	parent, _ = strconv.Atoi(fields[1])
	group, _ = strconv.Atoi(fields[2])
	return fields[0], parent, group
}

// freeze stops a process, and returns when none of its threads runs; thaw lets it go on.
func freeze(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Second); ; time.Sleep(100 * time.Microsecond) {
		running := false
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range tasks {
			state, _, _ := processState(name)
			running = running || !strings.Contains("TtZX", state)
		}
		if !running {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not stop", pid)
		}
	}
}

func thaw(pid int) { syscall.Kill(pid, syscall.SIGCONT) }

// connectionsTo returns the clients' addresses of the connections to addr, by the names of their sockets.
func connectionsTo(addr string) (map[string]string, error) {
	server, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	clients := make(map[string]string)
	in := bufio.NewScanner(f)
	for in.Scan() {
		fields := strings.Fields(in.Text())
		if len(fields) > 9 && procAddr(fields[1]) == server {
			clients["socket:["+fields[9]+"]"] = procAddr(fields[2]).String()
		}
	}
	return clients, in.Err()
}

// heldBy returns those of the connections that the process has open.
func heldBy(pid int, connections map[string]string) map[string]bool {
	held := make(map[string]bool)
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	open, _ := os.ReadDir(dir)
	for _, fd := range open {
		if name, err := os.Readlink(dir + fd.Name()); err == nil && connections[name] != "" {
			held[connections[name]] = true
		}
	}
	return held
}

// procAddr reads an IPv4 address as /proc/net/tcp has it: the address as a number in the host's byte order, and the port.
func procAddr(s string) netip.AddrPort {
	ip, port, _ := strings.Cut(s, ":")
	number, err := strconv.ParseUint(ip, 16, 32)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil {
		return netip.AddrPort{}
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(number))
	return netip.AddrPortFrom(netip.AddrFrom4(b), uint16(n))
}

// Not in package syscall; the number is the same on all architectures that Go runs on.
const sysPidfdOpen = 434

// waitGone returns as soon as the process has ended, whoever its parent is: a pidfd becomes readable at that moment,
// see pidfd_open(2).
func waitGone(pid int) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno == syscall.ESRCH {
		return
	}
	if errno != 0 {
		pollGone(pid) // a kernel before 5.3
		return
	}
	defer syscall.Close(int(fd))
	poll := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: 1} // POLLIN
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, 0, 0, 0, 0)
		runtime.KeepAlive(&poll)
		if errno != syscall.EINTR || int(n) > 0 {
			return
		}
	}
}

// endWithBench makes the command end with this process, should this process be killed.
func endWithBench(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
