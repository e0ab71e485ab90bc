package driver

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// envIsolated is set for a test that runs in namespaces of its own.
const envIsolated = "GRACE_ISOLATED"

// Isolate runs the calling test once more, in namespaces of its own: there it may
// mount what it likes, every address is free, and all processes end with it.
// Isolate returns true there; otherwise, the test is over when it returns. It
// skips the test where such namespaces cannot be had.
func Isolate(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envIsolated) == t.Name() {
		raiseLoopback(t)
		return true
	}
	if testing.Short() {
		t.Skip("a network of its own takes too long for -short")
	}
	unshare := []string{"--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--"}
	if out, err := exec.Command("unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no namespaces here: unshare: %v: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", append(unshare, self, "-test.v", "-test.run=^"+t.Name()+"$")...)
	cmd.Env = append(os.Environ(), envIsolated+"="+t.Name())
	// The process that unshare starts is the first of its namespace: with it, all end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		t.Log(lines.Text())
	}
	switch {
	case err != nil:
		t.Fatalf("in namespaces of its own: %v", err)
	case strings.Contains(string(out), "\n--- SKIP"):
		t.SkipNow()
	}
	return false
}

// raiseLoopback has the loopback addresses of a new network namespace work.
func raiseLoopback(t *testing.T) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	request := struct { // struct ifreq of netdevice(7)
		name  [16]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(request.name[:], "lo")
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatalf("raising the loopback interface: %v", errno)
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	} else {
		l.Close()
	}
}
