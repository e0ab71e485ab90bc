//go:build linux

package deploy

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

func TestSocketsAsTheyStand(t *testing.T) {
	driver.OnlyAll(t)
	systemd.Need(t)
	deploy(t)
	service := systemd.System.Install(t, "gracedemo.service", "", "")
	socket := systemd.System.Install(t, "gracedemo.socket", "", "")
	socket.Do("start")
	equal(t, service, "ActiveState", "inactive")

	// The first connection starts the service.
	first := ask(t, "127.0.0.1:48568")
	service.Await("SubState", "running")
	equal(t, service, "MainPID", strconv.Itoa(first))
	if log := service.Journal(); !strings.Contains(log, "on sockets from systemd") {
		t.Error("the service does not say that its sockets are from systemd")
	}

	// While systemd holds the sockets nobody is refused, whatever becomes of the service.
	stop := load(t, "127.0.0.1:48567", true)
	defer stop()
	old := first
	for range 2 {
		h := hold(t, "127.0.0.1:48569", "/sleep/")
		service.Do("reload")
		pid := awaitAnotherThan(t, "127.0.0.1:48568", old)
		h.finish(old)
		service.Do("restart")
		if old = service.MainPID(); old == pid {
			t.Errorf("after a restart the main process is still pid %d", pid)
		}
	}
	stop()

	// Stopped, it is started again by whoever comes next.
	service.Do("stop")
	equal(t, service, "Result", "success")
	equal(t, socket, "SubState", "listening")
	if pid := ask(t, "[::1]:48567"); pid == old {
		t.Errorf("pid %d answers, which was stopped", pid)
	}
}

func TestSocketsByName(t *testing.T) {
	driver.OnlyAll(t)
	systemd.Need(t)
	deploy(t)
	web := systemd.System.Install(t, "gracedemo-web.socket", "", "")
	local := systemd.System.Install(t, "gracedemo-local.socket", "", "")
	service := systemd.System.Install(t, "gracedemo-named.service", "", "")
	web.Do("start")
	local.Do("start")
	equal(t, service, "ActiveState", "inactive")

	const path = "/run/gracedemo.sock"
	first := ask(t, path)
	service.Await("SubState", "running")
	for _, addr := range []string{"127.0.0.1:48567", "127.0.0.1:48569"} {
		if pid := ask(t, addr); pid != first {
			t.Errorf("pid %d answers at %s, pid %d at %s", pid, addr, first, path)
		}
	}

	stop := load(t, path, true)
	defer stop()
	service.Do("reload")
	awaitAnotherThan(t, path, first)
	service.Do("restart")
	third := service.MainPID()
	service.Do("reload")
	awaitAnotherThan(t, path, third)
	stop()

	// The path is systemd's: no end of any process removes it.
	service.Do("stop")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the service was stopped, and the socket is gone: %v", err)
	}
	if ask(t, path) != service.MainPID() {
		t.Error("the main process is not who answers")
	}
}

// A server of datagrams, beside streams: what systemd holds reaches it too.
func TestDatagramSockets(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	systemd.Need(t)
	const udp, path, streams = "127.0.0.1:21001", "/run/datagrams.dgram", "/run/datagrams.stream"
	service := systemd.System.Write(t, "datagrams.service", `
[Service]
Type=notify
Sockets=datagrams.socket datagrams-udp.socket
ExecStart=`+systemd.Program(t, "testserver")+` -mode http -listen unix:`+streams+` -packet systemd:udp -packet unixgram:`+path+`
ExecReload=/bin/kill -USR2 $MAINPID
`)
	systemd.System.Write(t, "datagrams-udp.socket", `
[Socket]
ListenDatagram=`+udp+`
FileDescriptorName=udp
Service=datagrams.service
`).Do("start")
	local := systemd.System.Write(t, "datagrams.socket", `
[Socket]
ListenDatagram=`+path+`
ListenStream=`+streams+`
Service=datagrams.service
`)
	local.Do("start")
	equal(t, service, "ActiveState", "inactive")

	clients := map[string]net.Conn{}
	for network, address := range map[string]string{"udp": udp, "unixgram": path} {
		var from net.Addr
		if network == "unixgram" { // it needs an address to be answered at
			from = &net.UnixAddr{Name: "@datagrams-client", Net: network}
		}
		c, err := (&net.Dialer{LocalAddr: from}).Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		clients[network] = c
	}
	exchange := func(network string, text string) (pid int) {
		t.Helper()
		c := clients[network]
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		b := make([]byte, 1024)
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("%s: no answer to %q: %v", network, text, err)
		}
		number, rest, _ := strings.Cut(string(b[:n]), " ")
		if rest != text {
			t.Fatalf("%s: the answer to %q is %q", network, text, b[:n])
		}
		pid, _ = strconv.Atoi(number)
		return pid
	}

	// The first one starts the service; those that come while it is restarted wait.
	first := exchange("udp", "lazy start")
	service.Await("MainPID", strconv.Itoa(first))
	service.Await("SubState", "running") // systemd ignores a reload of what is still starting
	for _, verb := range []string{"reload", "restart", "stop"} {
		old := service.MainPID()
		done := make(chan struct{})
		go func() {
			defer close(done)
			service.Do(verb)
		}()
		for n := 0; ; n++ {
			exchange("udp", fmt.Sprintf("%s %d", verb, n))
			exchange("unixgram", fmt.Sprintf("%s %d", verb, n))
			select {
			case <-done:
			default:
				continue
			}
			break
		}
		if verb == "stop" {
			exchange("udp", "lazy start again")
		}
		service.AwaitAnotherMain(old)
		service.Await("SubState", "running")
		if by := exchange("udp", "after the "+verb); by == old {
			t.Errorf("after a %s pid %d still answers", verb, by)
		}
	}
	for _, path := range []string{path, streams} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the socket is gone: %v", err)
		}
	}
}

// The store is for what the service has opened itself: it would get the others
// twice.
func TestSocketsOfUnitsAreNotStored(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := newStoringDemo(t, "RestartSec=100ms")
	socket := systemd.System.Write(t, strings.TrimSuffix(d.Name, ".service")+".socket", `
[Socket]
ListenStream=`+d.addr+`
`)
	socket.Do("start")
	first := ask(t, d.addr)
	d.Await("NFileDescriptorStore", "3") // the others, and the control socket
	d.Kill("KILL")
	d.Await("NRestarts", "1")
	if pid := ask(t, d.addr); pid == first {
		t.Errorf("pid %d answers, which was killed", pid)
	}
	d.Await("SubState", "running")
	awaitMain(t, d.Unit, d.reload())
	equal(t, d.Unit, "NFileDescriptorStore", "3")
	// Each of the three is one socket, in one descriptor.
	if n := listeners(t, d.MainPID()); n != 3 {
		t.Errorf("pid %d has %d descriptors of listening sockets, want 3", d.MainPID(), n)
	}
}

// listeners returns how many descriptors of listening TCP sockets a process has.
func listeners(t *testing.T, pid int) (n int) {
	t.Helper()
	listening := map[string]bool{}
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if fields := strings.Fields(line); len(fields) > 9 && fields[3] == "0A" {
				listening["socket:["+fields[9]+"]"] = true
			}
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && listening[target] {
			n++
		}
	}
	return n
}
