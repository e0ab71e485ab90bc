//go:build unix

package gracenet_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestMain(m *testing.M) { os.Exit(driver.Run(m)) }

// start starts a server with these sockets and files, and waits until it is
// ready.
func start(t *testing.T, faults driver.Faults, entries ...string) (*driver.Server, *driver.Process) {
	t.Helper()
	s := driver.Start(t, arguments(faults, entries...)...)
	return s, s.Ready(1)
}

func arguments(faults driver.Faults, entries ...string) []string {
	args := []string{"-mode", "net", "-faults", string(faults)}
	for _, e := range entries {
		args = append(args, "-listen", e)
	}
	return args
}

// restart makes a process start its n-th generation, and waits until that is
// ready and the process has ended.
func restart(t *testing.T, s *driver.Server, p *driver.Process, n int) *driver.Process {
	t.Helper()
	p.Signal(syscall.SIGUSR2)
	next := s.Ready(n)
	p.WaitExit(0)
	return next
}

// ask returns the process id of whoever answers at the address.
func ask(t *testing.T, network, address string) int {
	t.Helper()
	var answer string
	switch network {
	case "udp", "unixgram":
		answer = askDatagram(t, network, address)
	default:
		c, err := net.DialTimeout(network, address, driver.Patience)
		if err != nil {
			t.Fatalf("asking %s %s: %v", network, address, err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(driver.Patience))
		if _, err := c.Write([]byte("who\n")); err != nil {
			t.Fatalf("asking %s %s: %v", network, address, err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatalf("asking %s %s: %v", network, address, err)
		}
		answer, _, _ = strings.Cut(line, " ")
	}
	pid, err := strconv.Atoi(answer)
	if err != nil {
		t.Fatalf("%s %s answers %q", network, address, answer)
	}
	return pid
}

// askDatagram asks until there is an answer: a process may end after it has
// read a datagram.
func askDatagram(t *testing.T, network, address string) string {
	t.Helper()
	var c net.Conn
	var err error
	if network == "unixgram" { // the answer needs an address
		c, err = net.DialUnix(network, &net.UnixAddr{Name: filepath.Join(t.TempDir(), "c"), Net: network}, &net.UnixAddr{Name: address, Net: network})
	} else {
		c, err = net.Dial(network, address)
	}
	if err != nil {
		t.Fatalf("asking %s %s: %v", network, address, err)
	}
	defer c.Close()
	b := make([]byte, 100)
	for deadline := time.Now().Add(driver.Patience); time.Now().Before(deadline); {
		if _, err = c.Write([]byte("who")); err != nil {
			continue
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(b); err == nil {
			return string(b[:n])
		}
	}
	t.Fatalf("asking %s %s: %v", network, address, err)
	return ""
}

func answeredBy(t *testing.T, p *driver.Process, network, address string) {
	t.Helper()
	if pid := ask(t, network, address); pid != p.Pid {
		t.Errorf("%s %s is answered by pid %d, want %d", network, address, pid, p.Pid)
	}
}

func inode(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestPort0KeepsItsPortOverRestarts(t *testing.T) {
	t.Parallel()
	entries := []string{
		"tcp=127.0.0.1:0", "tcp=127.0.0.1:0", // two of them
		"tcp4=127.0.0.1:0", "tcp=:0", "udp=127.0.0.1:0", "udp=127.0.0.1:0",
	}
	if hasIPv6() {
		entries = append(entries, "tcp6=[::1]:0")
	}
	s, first := start(t, driver.NewFaults(t), entries...)
	p := first
	for n := 2; n <= 4; n++ {
		p = restart(t, s, p, n)
		if !slices.Equal(p.Addrs, first.Addrs) {
			t.Errorf("generation %d listens on %v, the first on %v", n, p.Addrs, first.Addrs)
		}
		for i, addr := range p.Addrs {
			network, _, _ := strings.Cut(entries[i], "=")
			if host, port, err := net.SplitHostPort(addr); err == nil && host == "::" {
				addr = "127.0.0.1:" + port
			}
			answeredBy(t, p, network, addr)
		}
	}
}

// A successor that is not told which socket was port 0's must not serve on another port,
// and its predecessor end: its restart fails.
func TestPort0OfASilentPredecessorIsNotGuessed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	_, theirs := pair(t)
	ctx, cancel := context.WithTimeout(context.Background(), driver.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, driver.Binary(t), arguments("", "tcp=127.0.0.1:0")...)
	cmd.ExtraFiles = []*os.File{socket, theirs}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "GRACE_CONTROL=4")
	out, err := cmd.CombinedOutput()
	const want = "which of the inherited sockets this is, the predecessor has not said"
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("it ends with %v, want an error that says %q:\n%s", err, want, out)
	}
}

// pair returns both ends of a socket pair, which no process inherits that another test
// starts meanwhile.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestUnixPathsSurviveRestartsAndEndWithTheLastProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	networks := []string{"unix", "unixpacket", "unixgram"}
	var entries []string
	for _, network := range networks {
		entries = append(entries, network+"="+filepath.Join(dir, network))
	}
	s, p := start(t, driver.NewFaults(t), entries...)
	before := map[string]fs.FileInfo{}
	for _, network := range networks {
		before[network] = inode(t, filepath.Join(dir, network))
	}
	for n := 2; n <= 4; n++ {
		p = restart(t, s, p, n)
		for _, network := range networks {
			path := filepath.Join(dir, network)
			if !os.SameFile(before[network], inode(t, path)) {
				t.Errorf("generation %d has another file at %s", n, path)
			}
			answeredBy(t, p, network, path)
		}
	}
	p.Signal(syscall.SIGTERM)
	p.WaitExit(0)
	for _, network := range networks {
		if exists(filepath.Join(dir, network)) {
			t.Errorf("the last generation has left the file of its %s socket behind", network)
		}
	}
}

func TestUnixPathsOfAKilledProcessAreReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	networks := []string{"unix", "unixpacket", "unixgram"}
	var entries []string
	for _, network := range networks {
		entries = append(entries, network+"="+filepath.Join(dir, network))
	}
	s, p := start(t, driver.NewFaults(t), entries...)
	p = restart(t, s, p, 2) // as an heir too
	p.Signal(syscall.SIGKILL)
	p.Wait()
	for _, network := range networks {
		if !exists(filepath.Join(dir, network)) {
			t.Fatalf("the killed process has removed its %s socket's file", network)
		}
	}
	_, p = start(t, driver.NewFaults(t), entries...)
	for _, network := range networks {
		answeredBy(t, p, network, filepath.Join(dir, network))
	}
	p.Signal(syscall.SIGTERM)
	p.WaitExit(0)
	for _, network := range networks {
		if exists(filepath.Join(dir, network)) {
			t.Errorf("the file of its %s socket is left behind", network)
		}
	}
}

// A socket whose path leads nowhere, or to another's, is not what was asked for.
func TestUnixPathThatNoLongerLeadsToItsSocketIsBoundAnew(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		for name, lose := range map[string]func(t *testing.T, path string){
			"removed": func(*testing.T, string) {},
			"left behind by another": func(t *testing.T, path string) {
				leaveBehind(t, network, path)
			},
		} {
			t.Run(network+" "+name, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "s")
				s, p := start(t, driver.NewFaults(t), network+"="+path)
				p = restart(t, s, p, 2) // which has inherited what it passes on
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				lose(t, path)
				p = restart(t, s, p, 3)
				answeredBy(t, p, network, path) // and its predecessor has left it alone
				before := inode(t, path)
				p = restart(t, s, p, 4)
				answeredBy(t, p, network, path)
				if !os.SameFile(before, inode(t, path)) {
					t.Error("it was bound anew though nothing was wrong with it")
				}
				p.Signal(syscall.SIGTERM)
				p.WaitExit(0)
				if exists(path) {
					t.Error("the last process has left the file behind")
				}
			})
		}
		t.Run(network+" taken by another", func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			s, p := start(t, driver.NewFaults(t), network+"="+path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			_, other := start(t, driver.NewFaults(t), network+"="+path)
			p.Signal(syscall.SIGUSR2)
			s.Line(`listen ` + network + `.* address already in use`)
			s.Line(fmt.Sprintf("restart failed: .*still serving with pid %d", p.Pid))
			answeredBy(t, other, network, path)
		})
	}
}

// A new version's configuration may have another address for the same port.
func TestOneAddressInsteadOfAllIsServedByTheInheritedSocket(t *testing.T) {
	t.Parallel()
	networks := map[string]string{"tcp": ":0", "tcp4": "0.0.0.0:0", "udp": ":0"}
	for network, all := range networks {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			config := filepath.Join(t.TempDir(), "address")
			configure := func(address string) {
				t.Helper()
				if err := os.WriteFile(config, []byte(address), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			configure(all)
			s, first := start(t, driver.NewFaults(t), network+"=in:"+config)
			_, port, _ := net.SplitHostPort(first.Addrs[0])
			configure("127.0.0.1:" + port)
			p := first
			for n := 2; n <= 3; n++ {
				from := s.Mark()
				p = restart(t, s, p, n)
				s.Line(`listening on all of .*:`+port+`, as inherited, instead of 127\.0\.0\.1:`+port, from)
				if p.Addrs[0] != first.Addrs[0] {
					t.Errorf("it says that it listens on %s, and the socket is on %s", p.Addrs[0], first.Addrs[0])
				}
				answeredBy(t, p, network, "127.0.0.1:"+port)
			}
			configure(all)
			answeredBy(t, restart(t, s, p, 4), network, "127.0.0.1:"+port)
		})
	}
}

func TestAllAddressesInsteadOfOneNeedAStop(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ network, one, other string }{
		{"tcp", "127.0.0.1:", ":"},
		{"tcp4", "127.0.0.1:", "0.0.0.0:"},
		{"udp", "127.0.0.1:", ":"},
	} {
		t.Run(test.network, func(t *testing.T) {
			t.Parallel()
			config := filepath.Join(t.TempDir(), "address")
			if err := os.WriteFile(config, []byte(test.one+"0"), 0o600); err != nil {
				t.Fatal(err)
			}
			s, p := start(t, driver.NewFaults(t), test.network+"=in:"+config)
			_, port, _ := net.SplitHostPort(p.Addrs[0])
			if err := os.WriteFile(config, []byte(test.other+port), 0o600); err != nil {
				t.Fatal(err)
			}
			p.Signal(syscall.SIGUSR2)
			s.Line(`listen ` + test.network + `: .*:` + port + `: address already in use by the inherited socket on 127\.0\.0\.1:` + port +
				`, which does not serve for that: this change needs a stop`)
			s.Line(fmt.Sprintf("restart failed: .*still serving with pid %d", p.Pid))
			answeredBy(t, p, test.network, p.Addrs[0])
		})
	}
}

func TestLiveUnixPathOfAnotherProcessIsInUse(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		path := filepath.Join(t.TempDir(), network)
		s, p := start(t, driver.NewFaults(t), network+"="+path)
		other := driver.Start(t, arguments(driver.NewFaults(t), network+"="+path)...)
		other.Line(`address already in use`)
		other.First().WaitExit(1)
		answeredBy(t, p, network, path)
		answeredBy(t, restart(t, s, p, 2), network, path)
	}
}

// A successor that fails at its start closes what it was given, and must not
// take anything from the one that serves on.
func TestFailedSuccessorLeavesPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	entries := []string{"unix=" + filepath.Join(dir, "unix"), "unixpacket=" + filepath.Join(dir, "unixpacket"),
		"unixgram=" + filepath.Join(dir, "unixgram"), "tcp=127.0.0.1:0", "udp=127.0.0.1:0"}
	faults := driver.NewFaults(t)
	s, first := start(t, faults, entries...)
	before := map[string]fs.FileInfo{}
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		before[network] = inode(t, filepath.Join(dir, network))
	}
	check := func(p *driver.Process) {
		t.Helper()
		for i, e := range entries {
			network, _, _ := strings.Cut(e, "=")
			if info := before[network]; info != nil {
				if path := filepath.Join(dir, network); !exists(path) || !os.SameFile(info, inode(t, path)) {
					t.Errorf("the file of the %s socket is gone, or another", network)
					continue
				}
			}
			answeredBy(t, p, network, first.Addrs[i])
		}
	}
	faults.Set(t, "give-up")
	for range 2 {
		from := s.Mark()
		first.Signal(syscall.SIGUSR2)
		s.Line(fmt.Sprintf("restart failed: .*exit status 1.*still serving with pid %d", first.Pid), from)
		check(first)
	}
	faults.Clear(t, "give-up")
	check(restart(t, s, first, 2))
}

func TestNamedFilesTravel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	s, p := start(t, driver.NewFaults(t), "file=first log="+a, "tcp=127.0.0.1:0", "file=second log="+b)
	logs := map[string]*os.File{}
	for _, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		logs[path] = f
		if err := os.Remove(path); err != nil { // nobody can open it anew
			t.Fatal(err)
		}
	}
	want := fmt.Sprintln(p.Pid)
	for n := 2; n <= 4; n++ {
		from := s.Mark()
		p = restart(t, s, p, n)
		s.Line(fmt.Sprintf(`^file pid=%d name=first log found=8 of=8`, p.Pid), from)
		s.Line(fmt.Sprintf(`^file pid=%d name=second log found=8 of=8`, p.Pid), from)
		want += fmt.Sprintln(p.Pid)
	}
	for path, f := range logs {
		got := make([]byte, 1000)
		n, _ := f.ReadAt(got, 0)
		if string(got[:n]) != want {
			t.Errorf("%s holds\n%swant\n%s", path, got[:n], want)
		}
	}
}

func TestDatagramSocketsTravel(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "gram")
	s, first := start(t, driver.NewFaults(t), "udp=127.0.0.1:0", "unixgram="+path)
	p := first
	for n := 2; n <= 3; n++ {
		// What nobody has read goes to whoever is there then.
		p = restart(t, s, p, n)
		answeredBy(t, p, "udp", first.Addrs[0])
		answeredBy(t, p, "unixgram", path)
	}
}

// askAll has clients ask by datagrams, never twice, until stop is called; that
// returns how many questions there were, how many had no answer, and how many
// processes have answered.
func askAll(t *testing.T, address string) (stop func() (asked, lost, processes int)) {
	t.Helper()
	const clients = 16
	var asking sync.WaitGroup
	var mu sync.Mutex
	var asked, lost int
	pids := map[string]bool{}
	stopped := make(chan struct{})
	for i := range clients {
		c, err := net.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		asking.Add(1)
		go func() {
			defer asking.Done()
			defer c.Close()
			b := make([]byte, 100)
			for n := 0; ; n++ {
				select {
				case <-stopped:
					return
				default:
				}
				question := fmt.Sprintf("%d-%d", i, n)
				c.SetDeadline(time.Now().Add(2 * time.Second)) // what is lost is never answered
				_, err := c.Write([]byte(question))
				size := 0
				if err == nil {
					size, err = c.Read(b)
				}
				answer, pid, _ := strings.Cut(string(b[:size]), " ")
				mu.Lock()
				asked++
				if err != nil || answer != question {
					lost++
				} else {
					pids[pid] = true
				}
				mu.Unlock()
			}
		}()
	}
	return func() (int, int, int) {
		close(stopped)
		asking.Wait()
		return asked, lost, len(pids)
	}
}

func TestDatagramsInHandlersAreAnswered(t *testing.T) {
	t.Parallel()
	restarts := func(t *testing.T, faults driver.Faults) (asked, lost, processes int) {
		s := driver.Start(t, "-mode", "udp", "-listen", "127.0.0.1:0", "-faults", string(faults))
		p := s.Ready(1)
		stop := askAll(t, p.Addrs[0])
		for n := 2; n <= 6; n++ {
			p = restart(t, s, p, n)
		}
		return stop()
	}
	t.Run("by the recipe", func(t *testing.T) {
		t.Parallel()
		asked, lost, processes := restarts(t, driver.NewFaults(t))
		t.Logf("%d asked, %d lost, %d processes", asked, lost, processes)
		if lost > 0 || processes < 5 { // the last may have come too late
			t.Errorf("%d of %d are not answered, %d processes have answered", lost, asked, processes)
		}
	})
	t.Run("not so by closing the socket", func(t *testing.T) {
		t.Parallel()
		faults := driver.NewFaults(t)
		faults.Set(t, "careless")
		asked, lost, _ := restarts(t, faults)
		t.Logf("%d asked, %d lost", asked, lost)
		if lost == 0 {
			t.Errorf("all of %d are answered: the other test proves nothing", asked)
		}
	})
}

func TestWhatWasNeverAskedForIsClosedWhenReady(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	faults := driver.NewFaults(t)
	file := filepath.Join(t.TempDir(), "f")
	s, first := start(t, faults, "tcp=127.0.0.1:0", "tcp4=127.0.0.1:0", "udp=127.0.0.1:0", "file=log="+file)
	owned := map[string]bool{}
	for _, d := range first.Descriptors() {
		if d.IsSocket() || d.Target == file {
			owned[d.Target] = true
		}
	}
	if len(owned) != 4 {
		t.Fatalf("the first generation has %v, want three sockets and a file", owned)
	}

	for _, network := range []string{"tcp", "udp", "file"} {
		faults.Set(t, "skip-"+network)
	}
	second := restart(t, s, first, 2)
	var left []string
	for _, d := range second.Descriptors() {
		if owned[d.Target] {
			left = append(left, d.Target)
		}
	}
	if len(left) != 1 {
		t.Errorf("of %v the second generation has %v, want only the socket that it has asked for", owned, left)
	}
	if c, err := net.Dial("tcp", first.Addrs[0]); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("dialing a socket that nobody wants: %v, want ECONNREFUSED", err)
	}
	answeredBy(t, second, "tcp", first.Addrs[1])

	// Nor does it come back.
	for _, network := range []string{"tcp", "udp", "file"} {
		faults.Clear(t, "skip-"+network)
	}
	from := s.Mark()
	third := restart(t, s, second, 3)
	s.Line(fmt.Sprintf(`^file pid=%d name=log found=0 of=8`, third.Pid), from)
	if third.Addrs[0] == first.Addrs[0] || third.Addrs[2] == first.Addrs[2] {
		t.Errorf("the third generation listens on %v, as the first: %v", third.Addrs, first.Addrs)
	}
	if third.Addrs[1] != first.Addrs[1] {
		t.Errorf("the third generation listens on %s, want %s", third.Addrs[1], first.Addrs[1])
	}
}

func TestClosedSocketsAreNotPassedOn(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	path := filepath.Join(t.TempDir(), "s")
	faults := driver.NewFaults(t)
	s, first := start(t, faults, "tcp=127.0.0.1:0", "tcp4=127.0.0.1:0", "udp=127.0.0.1:0", "unix="+path)
	before := map[string]bool{}
	for _, d := range first.Sockets() {
		before[d.Target] = true
	}
	for _, network := range []string{"tcp", "udp", "unix"} {
		faults.Set(t, "close-"+network)
	}
	second := restart(t, s, first, 2)
	for i, kept := range []bool{false, true, false, true} {
		if (second.Addrs[i] == first.Addrs[i]) != kept {
			t.Errorf("the second generation has %v, the first had %v; socket %d was kept: %v", second.Addrs, first.Addrs, i, kept)
		}
	}
	var inherited []string
	for _, d := range second.Sockets() {
		if before[d.Target] {
			inherited = append(inherited, d.Target)
		}
	}
	if len(inherited) != 1 {
		t.Errorf("of the sockets %v the second generation has inherited %v, want only the one that was not closed", before, inherited)
	}
	answeredBy(t, second, "unix", path)
	answeredBy(t, second, "tcp", first.Addrs[1])
}

func TestStartProcessReturnsAtOnce(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s, first := start(t, faults, "tcp=127.0.0.1:0")
	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	child := s.Line(fmt.Sprintf(`^started pid=%d child=(\d+)`, first.Pid))[1]
	s.Line(`^waiting pid=` + child)
	first.Signal(syscall.SIGUSR2)
	s.Line(fmt.Sprintf(`^failed-restart pid=%d .*already under way: pid %s`, first.Pid, child))
	answeredBy(t, first, "tcp", first.Addrs[0])
	faults.Clear(t, "slow")
	second := s.Ready(2)
	if strconv.Itoa(second.Pid) != child {
		t.Errorf("StartProcess has returned pid %s, and pid %d is ready", child, second.Pid)
	}
	first.WaitExit(0)
	answeredBy(t, second, "tcp", first.Addrs[0])
}

// Programs that do not handle SIGTERM were ended by their successor's, and they
// can be stopped by anybody's at any time.
func TestPredecessorWithoutHandlerDiesBySIGTERM(t *testing.T) {
	t.Parallel()
	for name, test := range driver.SomeOf(map[string]struct {
		fault string // of the successor
		stop  func(s *driver.Server, p *driver.Process)
	}{
		"successor is ready": {"", func(s *driver.Server, p *driver.Process) { s.Ready(2) }},
		"while it starts": {"hang", func(s *driver.Server, p *driver.Process) {
			s.Line(`^hanging pid=`)
			// One may come while it is still open what it means.
			for range 100 {
				syscall.Kill(p.Pid, syscall.SIGTERM)
				select {
				case <-p.Exited():
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
		}},
	}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			faults.Set(t, "no-handler")
			s, first := start(t, faults, "tcp=127.0.0.1:0")
			faults.Clear(t, "no-handler")
			if test.fault != "" {
				faults.Set(t, test.fault)
			}
			first.Signal(syscall.SIGUSR2)
			s.Line(`^started pid=`)
			test.stop(s, first)
			if status := first.Wait(); status == nil || !status.Signaled() || status.Signal() != syscall.SIGTERM {
				t.Errorf("the predecessor has ended with %s, want SIGTERM", driver.Describe(status))
			}
		})
	}
}

// What a predecessor had to say reaches its successor even if it dies.
func TestSuccessorOfAKilledPredecessorKnowsItsSockets(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	file := filepath.Join(t.TempDir(), "f")
	s, first := start(t, faults, "tcp=127.0.0.1:0", "udp=127.0.0.1:0", "tcp=127.0.0.1:0", "file=log="+file)
	faults.Set(t, "slow")
	first.Signal(syscall.SIGUSR2)
	s.Line(`^waiting pid=`)
	first.Signal(syscall.SIGKILL)
	first.Wait()
	faults.Clear(t, "slow")
	second := s.Ready(2)
	if !slices.Equal(second.Addrs, first.Addrs) {
		t.Errorf("it listens on %v, its predecessor on %v", second.Addrs, first.Addrs)
	}
	s.Line(fmt.Sprintf(`^file pid=%d name=log found=8 of=8`, second.Pid))
	answeredBy(t, second, "tcp", first.Addrs[0])
	answeredBy(t, second, "udp", first.Addrs[1])
	answeredBy(t, restart(t, s, second, 3), "tcp", first.Addrs[2])
}

func TestWrongVariablesAreAnErrorAndLeaveNothingOpen(t *testing.T) {
	t.Parallel()
	driver.NeedProc(t)
	listener := func() *os.File {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	control := func() *os.File {
		f, _ := pair(t)
		return f
	}
	for _, test := range driver.Some([]struct {
		name  string
		env   []string
		files []*os.File
		want  string
	}{
		{"control is no number", []string{"LISTEN_FDS=2", "GRACE_CONTROL=abc"}, []*os.File{listener(), listener()}, "GRACE_CONTROL"},
		{"control is not open", []string{"LISTEN_FDS=2", "GRACE_CONTROL=99"}, []*os.File{listener(), listener()}, "GRACE_CONTROL"},
		{"control is a standard stream", []string{"LISTEN_FDS=1", "GRACE_CONTROL=1"}, []*os.File{listener(), control()}, "GRACE_CONTROL"},
		{"control is a listening socket", []string{"LISTEN_FDS=1", "GRACE_CONTROL=3"}, []*os.File{listener()}, "GRACE_CONTROL"},
		{"control is one of the sockets", []string{"LISTEN_FDS=2", "GRACE_CONTROL=4"}, []*os.File{listener(), control(), control()}, "GRACE_CONTROL"},
		{"too many sockets, with control", []string{"LISTEN_FDS=3", "GRACE_CONTROL=4"}, []*os.File{listener(), control()}, ""},
		{"nonsense, with control", []string{"LISTEN_FDS=many", "GRACE_CONTROL=3"}, []*os.File{control()}, ""},
		{"the largest number", []string{"LISTEN_FDS=9223372036854775807", "GRACE_CONTROL=4"}, []*os.File{listener(), control()}, ""},
		{"beyond every number", []string{"LISTEN_FDS=99999999999999999999", "GRACE_CONTROL=4"}, []*os.File{listener(), control()}, ""},
		{"negative, with control", []string{"LISTEN_FDS=-1", "GRACE_CONTROL=3"}, []*os.File{control()}, ""},
		{"supervisor is no number", []string{"LISTEN_FDS=1", "GRACE_SUPERVISOR=x"}, []*os.File{listener()}, "GRACE_SUPERVISOR"},
		{"supervisor is a listening socket", []string{"LISTEN_FDS=1", "GRACE_SUPERVISOR=3"}, []*os.File{listener()}, "GRACE_SUPERVISOR"},
	}, 4) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			given := map[string]bool{}
			for _, f := range test.files {
				raw, err := f.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				raw.Control(func(fd uintptr) {
					target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
					given[target] = true
				})
			}
			s := driver.Command{Args: []string{"-mode", "inherit"}, Env: test.env, ExtraFiles: test.files}.Start(t)
			m := s.Line(`^inherited pid=\d+ count=(\d+) error=(.*)`)
			if m[1] != "0" || !strings.Contains(m[2], "grace: inheriting listeners: ") || !strings.Contains(m[2], test.want) {
				t.Errorf("%s listeners and %q, want an error that names %s", m[1], m[2], test.want)
			}
			for _, d := range s.First().Descriptors() {
				if given[d.Target] {
					t.Errorf("left open: %v", d)
				}
			}
			s.First().Signal(syscall.SIGTERM)
			s.First().WaitExit(0)
		})
	}
}
