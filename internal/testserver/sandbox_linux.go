package main

import (
	"flag"
	"log"
	"runtime"
	"syscall"
	"unsafe"
)

var (
	sandbox    = flag.Bool("sandbox", false, "Refuse waitid, pidfds and CLONE_PARENT to this process.")
	unkillable = flag.Bool("unkillable", false, "Refuse to kill any process.")
	closed     = flag.Bool("closed", false, "Close /proc/PID/exe to others, as when the user changes, or a file has capabilities.")
)

// closeToOthers is PR_SET_DUMPABLE of prctl(2).
func closeToOthers() {
	const setDumpable = 4
	if *closed {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0); errno != 0 {
			log.Fatal("prctl: ", errno)
		}
	}
}

// enterSandbox installs a filter, see seccomp(2), for all threads, as a container's or
// systemd's SystemCallFilter= may be.
func enterSandbox() {
	if !*sandbox && !*unkillable {
		return
	}
	const (
		load, jumpIfEqual, jumpIfSet, answer = 0x20, 0x15, 0x45, 0x06
		allow, eperm                         = 0x7fff0000, 0x50000 | uint32(syscall.EPERM)
		// In struct seccomp_data; the low halves, on machines of ours.
		number, argument, second = 0, 16, 24

		setNoNewPrivs         = 38
		setModeFilter, forAll = 1, 1 // SECCOMP_FILTER_FLAG_TSYNC
		pidfdSend, pidfdOpen  = 424, 434
	)
	type instruction struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	filter := []instruction{
		{load, 0, 0, number},
		{jumpIfEqual, 5, 0, syscall.SYS_WAITID},
		{jumpIfEqual, 4, 0, pidfdSend},
		{jumpIfEqual, 3, 0, pidfdOpen},
		{jumpIfEqual, 0, 3, syscall.SYS_CLONE},
		{load, 0, 0, argument},
		{jumpIfSet, 0, 1, syscall.CLONE_PARENT},
		{answer, 0, 0, eperm},
		{answer, 0, 0, allow},
	}
	if *unkillable {
		filter = []instruction{
			{load, 0, 0, number},
			{jumpIfEqual, 1, 0, syscall.SYS_KILL},
			{jumpIfEqual, 0, 3, pidfdSend},
			{load, 0, 0, second},
			{jumpIfEqual, 0, 1, uint32(syscall.SIGKILL)},
			{answer, 0, 0, eperm},
			{answer, 0, 0, allow},
		}
	}
	seccomp := map[string]uintptr{"amd64": 317, "arm64": 277}[runtime.GOARCH]
	if seccomp == 0 {
		log.Fatal("no sandbox on ", runtime.GOARCH)
	}
	program := struct {
		n      uint16
		filter *instruction
	}{uint16(len(filter)), &filter[0]}
	runtime.LockOSThread() // the filter, and what it needs, then go to all threads
	defer runtime.UnlockOSThread()
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, setNoNewPrivs, 1, 0, 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(seccomp, setModeFilter, forAll, uintptr(unsafe.Pointer(&program)))
	}
	if errno != 0 {
		log.Fatal("seccomp: ", errno)
	}
}
