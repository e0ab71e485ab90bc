//go:build linux

package deploy

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

func TestListenersOutliveACrash(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newStoringDemo(t, "RestartSec=1")
	d.Do("start")
	d.Await("NFileDescriptorStore", "4")
	d.reload()
	pid := d.reload()
	awaitMain(t, d.Unit, pid)
	d.Await("NFileDescriptorStore", "4")
	inode := listenerInode(t, d.addr)

	for range 2 {
		d.Kill("KILL")
		// It waits in the socket that systemd has kept: nobody is there to accept it.
		if by := ask(t, d.addr); by == pid {
			t.Errorf("pid %d answers, which was killed", by)
		}
		d.Await("SubState", "running")
		if now := listenerInode(t, d.addr); now != inode {
			t.Errorf("the listening socket is %s, was %s before the crash", now, inode)
		}
		pid = d.reload()
		awaitMain(t, d.Unit, pid)
	}
	equal(t, d.Unit, "NRestarts", "2")
	equal(t, d.Unit, "NFileDescriptorStore", "4")

	// When it is stopped, nobody listens any more.
	d.Do("stop")
	if c, err := net.Dial("tcp", d.addr); err == nil {
		c.Close()
		t.Error("the service is stopped, and its socket still open")
	}
}

// newStoringDemo has systemd keep the sockets. Before version 254 it does not say that
// it can.
func newStoringDemo(t *testing.T, settings ...string) *demo {
	t.Helper()
	flags := ""
	if systemd.Version(t) < 254 {
		flags = "-store"
	}
	return newDemoWith(t, "gracedemo.service", flags, append(settings, "FileDescriptorStoreMax=8")...)
}

// listenerInode returns what tells a listening socket from another one.
func listenerInode(t *testing.T, addr string) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 9 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", n)) {
			return fields[9]
		}
	}
	t.Fatalf("nobody listens on %s", addr)
	return ""
}
