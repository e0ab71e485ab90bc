package systemd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestReloadingTellsTheMonotonicTime(t *testing.T) {
	now := func() int64 {
		var ts syscall.Timespec
		syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&ts)), 0)
		return ts.Nano() / 1000
	}
	before := now()
	state := Reloading()
	after := now()
	var usec int64
	if n, err := fmt.Sscanf(state, "RELOADING=1\nMONOTONIC_USEC=%d", &usec); n != 1 || err != nil {
		t.Fatalf("%q: %v", state, err)
	}
	if usec < before || usec > after {
		t.Errorf("%d µs, want between %d and %d", usec, before, after)
	}
}

func TestNotifySendsCopiesOfDescriptors(t *testing.T) {
	socket := path(t)
	c := receiver(t, socket)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = Notify(socket, "FDSTORE=1\nFDNAME=web", int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	// Ours stays open, and theirs too when it is closed.
	if _, err := w.Write([]byte("ours ")); err != nil {
		t.Error(err)
	}
	w.Close()

	b, oob := make([]byte, 1024), make([]byte, 1024)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil || string(b[:n]) != "FDSTORE=1\nFDNAME=web" {
		t.Fatalf("received %q, %v", b[:n], err)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v, want one", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v, want one", len(fds), err)
	}
	theirs := os.NewFile(uintptr(fds[0]), "copy")
	if _, err := theirs.Write([]byte("theirs")); err != nil {
		t.Error(err)
	}
	theirs.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	var all strings.Builder
	if _, err := io.Copy(&all, r); err != nil || all.String() != "ours theirs" {
		t.Errorf("read %q, %v", all.String(), err)
	}
}
