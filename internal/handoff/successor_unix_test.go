//go:build unix

package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// noProcess is a process id that no system gives out.
const noProcess = 1 << 30

// A playedProcess is one that is none. It ends when the test says so.
type playedProcess struct {
	end     chan exit
	signals chan os.Signal // that it was sent
}

func (p *playedProcess) pid() int                  { return noProcess }
func (p *playedProcess) wait(<-chan struct{}) exit { return <-p.end }
func (p *playedProcess) Signal(sig os.Signal) error {
	p.signals <- sig
	return nil
}

// ended is how a process ends with a status.
func ended(code int) exit {
	return exit{err: fmt.Errorf("exit status %d", code), success: code == 0}
}

// playedSuccessor returns a successor whose process, and end of the control socket, the
// test plays.
func playedSuccessor(g *Generation, c *control) *Successor {
	s := newSuccessor(g, nil)
	s.Pid, s.Started, s.control = noProcess, time.Now(), c
	s.process = &playedProcess{make(chan exit, 1), make(chan os.Signal, 10)}
	return s
}

// play returns a successor that is listened to, and the other end.
func play(t *testing.T) (*Successor, *control) {
	t.Helper()
	ours, theirs := newPair(t)
	g := newGeneration()
	g.SetLogger(quiet)
	g.Manager = newManager(g, &birth{})
	s := playedSuccessor(g, ours)
	g.successor = s
	go s.wait()
	go s.receive()
	t.Cleanup(func() {
		s.Release()
		theirs.close()
		s.finish(ended(0))
		<-s.ended
		<-s.heard
	})
	return s, theirs
}

// finish ends the process, if it runs.
func (s *Successor) finish(e exit) {
	select {
	case s.process.(*playedProcess).end <- e:
	default:
	}
}

// next returns the next event that needs an answer.
func (s *Successor) next(t *testing.T) Event {
	t.Helper()
	for {
		e := await(t, "the next event", s.Events())
		if e != Said {
			return e
		}
	}
}

// expect fails the test if these are not the next events.
func (s *Successor) expect(t *testing.T, events ...Event) {
	t.Helper()
	for _, want := range events {
		if got := s.next(t); got != want {
			t.Fatalf("event %d, want %d of %v", got, want, events)
		}
	}
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// pass makes the listener the successor's, at this place.
func (s *Successor) pass(t *testing.T, l syscall.Conn, place int) {
	t.Helper()
	id, err := identify(l)
	if err != nil {
		t.Fatal(err)
	}
	s.passed[id] = place
}

func send(t *testing.T, c *control, k kind, body any, fds ...int) {
	t.Helper()
	if err := c.send(k, body, fds...); err != nil {
		t.Fatal(err)
	}
}

// A signal that was sent after a word shall not be taken for one that was sent before.
func TestWordThatWasNotReceivedYetIsKnown(t *testing.T) {
	for range 100 {
		s, peer := play(t)
		if s.MayBeReady() {
			t.Error("it has said nothing")
		}
		send(t, peer, kindWaits, nil)
		if e := await(t, "its word", s.Events()); e != Said || s.MayBeReady() {
			t.Fatalf("event %d, of which nothing follows: it may be ready: %v", e, s.MayBeReady())
		}
		send(t, peer, kindReady, nil)
		for range 3 {
			if !s.MayBeReady() {
				t.Fatal("it was not seen that the successor has said something")
			}
			runtime.Gosched()
		}
		s.expect(t, Ready)
	}
	ours, theirs := newPair(t)
	unread := playedSuccessor(newGeneration(), ours) // nobody has listened yet
	send(t, theirs, kindReady, nil)
	theirs.close()
	if !unread.MayBeReady() {
		t.Error("what was said counts no more when the other end is closed")
	}
}

func TestEventsComeInTheOrderOfWords(t *testing.T) {
	s, peer := play(t)
	for _, w := range []struct {
		kind kind
		body any
	}{
		{kindHello, helloBody{Takes: true, Moves: true}},
		{kindWaits, nil},
		{kindReady, nil},
		{kindStepDown, nil},
		{kindServeAgain, nil},
		{kindStepDown, stepDownBody{Stopping: true}},
		{kindStepDown, stepDownBody{}},
	} {
		send(t, peer, w.kind, w.body)
	}
	s.expect(t, Ready)
	if !s.Waits() || s.Moves() != canMove || !s.movesOwn.Load() {
		t.Errorf("it runs Wait: %v; takes connections: %v, and the program's own: %v", s.Waits(), s.Moves(), s.movesOwn.Load())
	}
	s.expect(t, HandsOver, ServesAgain, Stops, HandsOver)
	if s.HasEnded() {
		t.Error("it has ended")
	}
	peer.close()
	s.expect(t, Silent)
	if s.Moves() {
		t.Error("connections move to one that cannot answer")
	}
	s.finish(ended(3))
	s.expect(t, Ended)
	if err := s.ExitError(); err.Error() != "exit status 3" || s.Succeeded() || !s.HasEnded() {
		t.Errorf("it has ended with %v; success: %v", err, s.Succeeded())
	}
	if s.g.Successor() != nil || s.g.Refuses() != nil {
		t.Errorf("no other can be started: %v", s.g.Refuses())
	}
}

// What a process has said counts although it ends, and its children hold its end of the
// control socket.
func TestWordsBeforeTheEndAreHeardFirst(t *testing.T) {
	s, peer := play(t)
	send(t, peer, kindReady, nil)
	send(t, peer, kindStepDown, stepDownBody{Stopping: true})
	s.finish(ended(0))
	driver.Eventually(t, "the end", s.HasEnded) // peer stays open
	s.expect(t, Ready, Stops)
	if e := s.next(t); e == Silent {
		s.expect(t, Ended)
	} else if e != Ended {
		t.Errorf("event %d, want its end", e)
	}
	if !s.Succeeded() {
		t.Error("it has ended with status 0")
	}
}

func TestSuccessorNobodyReceivesFromIsHeardToItsEnd(t *testing.T) {
	s, peer := play(t)
	s.Release()
	send(t, peer, kindReady, nil)
	peer.close()
	s.finish(ended(0))
	await(t, "its last word", s.heard)
	await(t, "its end", s.ended)
}

func TestSocketThatCannotBeReadIsTheEndOfWords(t *testing.T) {
	s, peer := play(t)
	if _, err := peer.conn.Write([]byte{255, 255, 255, 255, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	s.expect(t, Silent)
	if err := peer.send(kindReady, nil); !isGone(err) {
		t.Errorf("the successor cannot tell that nobody listens: %v", err)
	}
}

func TestSuccessorThatIsGivenUpLearnsThatNobodyWaits(t *testing.T) {
	s, g := newGenerations(t)
	s.GiveUp()
	s.expect(t, Silent)
	if err := g.Ready(); !errors.Is(err, ErrGivenUp) {
		t.Errorf("Ready: %v, want ErrGivenUp", err)
	}
}

// Whoever of the two is first, both know who serves, and can go on talking.
func TestGiveUpAndReadyExcludeEachOther(t *testing.T) {
	served := 0
	times := driver.Times(200, 4)
	for range times {
		s, g := newGenerations(t)
		ready := make(chan error, 1)
		go func() { ready <- g.Ready() }()
		s.GiveUp()
		e := s.next(t)
		err := await(t, "Ready", ready)
		switch {
		case e == Ready && err == nil:
			served++
			s.Status("3 left", false)
			await(t, "the status", g.Predecessor.Statuses())
			g.Predecessor.StepDown(false)
			s.expect(t, HandsOver)
		case e == Silent && errors.Is(err, ErrGivenUp):
		default:
			t.Fatalf("event %d, but Ready returns %v", e, err)
		}
	}
	t.Logf("ready was first in %d of %d", served, times)
}

// It may read long after its start: whatever does not fit into the socket waits.
func TestSuccessorThatReadsLateHearsAll(t *testing.T) {
	driver.NotShort(t)
	const sockets = 3000
	s, peer := play(t)
	told := make([]*Socket, sockets)
	for i := range told {
		told[i] = &Socket{Kind: Listener, Name: fmt.Sprint(i)}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.tell(told, nil)
	}()
	time.Sleep(3 * postTimeout)
	if isClosed(done) {
		t.Fatal("all fits: too few for this test")
	}
	for i := range sockets {
		var b socketBody
		peer.receiveKind(t, kindSocket, &b)
		if b.Name != fmt.Sprint(i) {
			t.Fatalf("after %d sockets it hears of socket %s", i, b.Name)
		}
	}
	peer.receiveKind(t, kindBegin, nil)
	await(t, "the end", done)
}

func TestProcessThatStopsStartsNoSuccessor(t *testing.T) {
	g := newGeneration()
	g.Manager = newManager(g, &birth{})
	g.Stopping()
	if _, err := g.Start(nil, true); !errors.Is(err, ErrStopping) {
		t.Errorf("Start of a process that is stopping: %v", err)
	}
	if _, err := g.Own(); err != nil || g.Refuses() != nil {
		t.Errorf("another Wait: %v, %v", err, g.Refuses())
	}
}

func TestOnlyOneSuccessorAtATime(t *testing.T) {
	s, _ := play(t)
	_, err := s.g.Start(nil, false)
	if !errors.Is(err, ErrUnderWay) || !strings.Contains(err.Error(), fmt.Sprint("pid ", noProcess)) {
		t.Errorf("error %v, want ErrUnderWay with the other's pid", err)
	}
	if s.g.Successor() != s {
		t.Error("the successor is forgotten")
	}
	s.g.successor = newSuccessor(s.g, nil) // not forked yet
	if err := s.g.Refuses(); !errors.Is(err, ErrUnderWay) || strings.Contains(err.Error(), "pid") {
		t.Errorf("error %v, want ErrUnderWay without a pid: there is none yet", err)
	}
}

func TestSuccessorIsKilledAndNotHeardAnyMore(t *testing.T) {
	s, peer := play(t)
	s.Kill()
	if sig := await(t, "the signal", s.process.(*playedProcess).signals); sig != syscall.SIGKILL {
		t.Errorf("it got %v", sig)
	}
	if err := peer.send(kindReady, nil); !isGone(err) {
		t.Errorf("ready could still be said: %v", err)
	}
	s.expect(t, Silent)
}

// One with a signal loop of its own decides by itself.
func TestStopIsPassedOnToASuccessorThatRunsWait(t *testing.T) {
	s, peer := play(t)
	s.Stop()
	s.Status("3 left", true)
	peer.receiveKind(t, kindStatus, nil) // and no stop before
	send(t, peer, kindWaits, nil)
	driver.Eventually(t, "its word", s.Waits)
	s.Stop()
	s.Drained()
	s.Flush(patience)
	peer.receiveKind(t, kindStop, nil)
	peer.receiveKind(t, kindDrained, nil)
}

func TestSuccessorThatDoesNotReadHoldsUpNobody(t *testing.T) {
	s, peer := play(t)
	within(t, "telling it much", func() {
		for range 100_000 {
			s.Status("1,234 left", false)
		}
		s.GiveUp()
		s.Flush(10 * time.Millisecond)
	})
	within(t, "what it hears in the end", func() {
		for m := new(message); m.kind != kindGiveUp; {
			var err error
			if m, err = peer.receive(); err != nil {
				t.Error(err)
				return
			}
		}
	})
}

func TestSuccessorsWordsAreSkippedIfUnknown(t *testing.T) {
	checkLeaks(t)
	s, peer := play(t)
	_, fds := newFiles(t, 3)
	send(t, peer, 999, map[string]any{"any": "thing"}, fds...)
	send(t, peer, kindHello, map[string]any{"Takes": true, "Later": []int{1}}, fds...)
	send(t, peer, kindTaken, takenBody{}, fds...) // an answer nobody waits for
	send(t, peer, 60000, nil)
	send(t, peer, kindReady, nil, fds[0])
	s.expect(t, Ready)
	if s.Moves() != canMove {
		t.Error("a hello with more in it was not understood")
	}
}

// Moving.

func TestSuccessorGetsListenersFirstAndAsCalledFor(t *testing.T) {
	checkLeaks(t)
	g := newGeneration()
	tcp, wrapped, fresh, closed := listenTCP(t), listenTCP(t), listenTCP(t), listenTCP(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	files, _ := newFiles(t, 1)
	g.Add(&Socket{Kind: File, Name: "log", Open: files[0]})
	g.Add(&Socket{Kind: Packet, Network: "udp", Address: ":0", Open: udp.(*net.UDPConn)})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":1", Open: fresh})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":2", Open: closed})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":3", Open: tcp})
	closed.Close()

	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{fileOnly{wrapped}, tcp}
	open, told, release, err := s.sockets()
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	want := []*net.TCPListener{wrapped, tcp, fresh}
	if len(open) != len(want) {
		t.Fatalf("%d listening sockets, want %d", len(open), len(want))
	}
	for i, l := range want {
		id, _ := identify(l)
		if got, err := identify(open[i]); err != nil || got != id {
			t.Errorf("place %d is another socket than that of %v (%v)", i, l.Addr(), err)
		}
		if s.passed[id] != i {
			t.Errorf("connections to %v will be sent to place %d, want %d", l.Addr(), s.passed[id], i)
		}
	}
	var got []string
	for _, sock := range told {
		got = append(got, fmt.Sprintf("%s %s%s%s", sock.Kind, sock.Network, sock.Address, sock.Name))
	}
	if w := []string{"listener ", "listener tcp:3", "listener tcp:1", "file log", "packet udp:0"}; !reflect.DeepEqual(got, w) {
		t.Errorf("told %q, want %q", got, w)
	}
}

// fileOnly is a listener with no more than the old interface.
type fileOnly struct{ l *net.TCPListener }

func (f fileOnly) Accept() (net.Conn, error) { return f.l.Accept() }
func (f fileOnly) Close() error              { return f.l.Close() }
func (f fileOnly) Addr() net.Addr            { return f.l.Addr() }
func (f fileOnly) File() (*os.File, error)   { return f.l.File() }

func TestListenerWithoutDescriptorCallsTheRestartOff(t *testing.T) {
	checkLeaks(t)
	closed := listenTCP(t)
	closed.Close()
	for what, l := range map[string]net.Listener{
		"no access":                  struct{ net.Listener }{listenTCP(t)},
		"closed":                     closed,
		"closed, by its File method": fileOnly{closed},
	} {
		s := playedSuccessor(newGeneration(), nil)
		s.listeners = []net.Listener{fileOnly{listenTCP(t)}, l}
		_, _, release, err := s.sockets()
		release()
		if err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("%s: error %v, want one that names %v", what, err, l.Addr())
		}
	}
}

// A wrapper may offer SyscallConn for all that it wraps, as grace.NewListener does.
func TestListenerThatHasOnlyFileMayBeWrapped(t *testing.T) {
	s := playedSuccessor(newGeneration(), nil)
	s.listeners = []net.Listener{wrapper{fileOnly{listenTCP(t)}}}
	open, _, release, err := s.sockets()
	defer release()
	if err != nil || len(open) != 1 {
		t.Errorf("%d sockets are passed on: %v", len(open), err)
	}
}

type wrapper struct{ fileOnly }

func (wrapper) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

func TestFileThatIsACopyOfAListener(t *testing.T) {
	g := newGeneration()
	a, b := listenTCP(t), listenTCP(t)
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: "a", Open: a})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: "b", Open: b})
	f, err := a.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g.Add(&Socket{Kind: File, Name: "copy", Open: f})
	s := playedSuccessor(g, nil)
	_, told, release, err := s.sockets()
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, sock := range told {
		got = append(got, string(sock.Kind)+" "+sock.Address+sock.Name)
	}
	if want := []string{"listener a", "listener b", "file copy"}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// told returns what tell says, up to the end.
func told(t *testing.T, sockets []*Socket, providers map[string]func() []byte) (said []string) {
	t.Helper()
	s, peer := play(t)
	go s.tell(sockets, providers)
	for {
		peer.conn.SetReadDeadline(time.Now().Add(patience))
		m, err := peer.receive()
		if err != nil {
			t.Errorf("no end of what the successor must know: %v; heard %q", err, said)
			return said
		}
		closeAll(m.fds)
		switch m.kind {
		case kindBegin:
			return said
		case kindSocket:
			var b socketBody
			m.decode(&b)
			said = append(said, fmt.Sprintf("%s %s%s%s, %d descriptors", b.Kind, b.Network, b.Address, b.Name, len(m.fds)))
		case kindState:
			var b stateBody
			m.decode(&b)
			said = append(said, fmt.Sprintf("state %s: %d bytes", b.Name, len(b.Value)))
		}
	}
}

func TestTellSkipsWhatWasClosed(t *testing.T) {
	checkLeaks(t)
	files, _ := newFiles(t, 2)
	files[0].Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	got := told(t, []*Socket{
		{Kind: Packet, Network: "udp", Address: "closed", Open: udp},
		{Kind: File, Name: "closed", Open: files[0]},
		{Kind: File, Name: "open", Open: files[1]},
	}, map[string]func() []byte{"state": func() []byte { return []byte("abc") }})
	if want := []string{"file open, 1 descriptors", "state state: 3 bytes"}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestTellSkipsAStateThatIsTooLarge(t *testing.T) {
	files, _ := newFiles(t, 1)
	got := told(t, []*Socket{{Kind: File, Name: "open", Open: files[0]}}, map[string]func() []byte{
		"large": func() []byte { return make([]byte, maxBody) },
		"a":     func() []byte { return []byte("1") },
		"b":     func() []byte { return []byte("2") },
		"none":  func() []byte { return nil },
	})
	for _, want := range []string{"file open, 1 descriptors", "state a: 1 bytes", "state b: 1 bytes", "state none: 0 bytes"} {
		found := false
		for _, g := range got {
			found = found || g == want
		}
		if !found {
			t.Errorf("told %q, without %q", got, want)
		}
	}
}

// Paths.

func TestPathsAreTheSuccessorsWhileItServes(t *testing.T) {
	g := newGeneration()
	pooled, bare := newPathListener(t), newPathListener(t)
	g.Add(&Socket{Kind: Listener, Open: pooled})
	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{bare}
	if _, _, release, err := s.sockets(); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	s.keepPaths(true) // from its start on
	if pooled.unlink || bare.unlink {
		t.Errorf("closing removes the path: %v, %v; they are the successor's", pooled.unlink, bare.unlink)
	}
	s.TakeBack()
	if !pooled.unlink || !bare.unlink {
		t.Errorf("closing removes the path: %v, %v; they are ours again", pooled.unlink, bare.unlink)
	}
}

func TestPathsOfWhatTheSuccessorDoesNotServeAreOurs(t *testing.T) {
	s, peer := play(t)
	kept, dropped, bare, rebound := newPathListener(t), newPathListener(t), newPathListener(t), newPathListener(t)
	for _, l := range []*pathListener{kept, dropped, rebound} {
		s.g.Add(&Socket{Kind: Listener, Open: l})
	}
	s.listeners = []net.Listener{bare}
	if _, _, release, err := s.sockets(); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	s.keepPaths(true)
	s.DropPaths()
	if kept.unlink || dropped.unlink || bare.unlink || rebound.unlink {
		t.Error("paths are removed of one that has not said what it serves")
	}
	send(t, peer, kindReady, readyBody{Kept: []int{1}, Rebound: []int{3}}) // after bare
	s.expect(t, Ready)
	s.DropPaths()
	if kept.unlink || !dropped.unlink || !bare.unlink {
		t.Errorf("closing removes the path: %v of what it serves, %v and %v of what it does not", kept.unlink, dropped.unlink, bare.unlink)
	}
	if rebound.unlink || s.Keeps(rebound) {
		t.Errorf("closing removes the path that it has bound anew: %v; it serves on our socket: %v", rebound.unlink, s.Keeps(rebound))
	}
	if !s.Keeps(kept) || s.Keeps(dropped) || s.Keeps(listenTCP(t)) {
		t.Error("it keeps what it has said")
	}
}

func TestTakeBackLeavesActivatedPathsAlone(t *testing.T) {
	g := newGeneration()
	g.Origin = Succeeded // by one that systemd has activated
	activated := newPathListener(t)
	activated.unlink = false
	g.Add(&Socket{Kind: Listener, Open: activated, Activated: true})
	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{activated}
	if _, _, release, err := s.sockets(); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	s.keepPaths(true) // from its start on
	s.TakeBack()
	if activated.unlink {
		t.Error("a path that is systemd's is removed after a successor has failed")
	}
}

// A pathListener shows what SetUnlinkOnClose was told.
type pathListener struct {
	*net.UnixListener
	unlink bool
}

func newPathListener(t *testing.T) *pathListener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &pathListener{UnixListener: l.(*net.UnixListener), unlink: true}
}

func (l *pathListener) SetUnlinkOnClose(unlink bool) { l.unlink = unlink }
