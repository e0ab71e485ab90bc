package handoff

import (
	"fmt"
	"net"
	"sync"
	"testing"
)

// newSockets returns sockets on loopback, closed when the test ends.
func newSockets(t *testing.T, n int) (all []*Socket) {
	t.Helper()
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		all = append(all, &Socket{Kind: Listener, Name: fmt.Sprint(i), Open: l, index: i})
	}
	return all
}

func names(sockets []*Socket) (names string) {
	for _, s := range sockets {
		names += s.Name + " "
	}
	return names
}

func anySocket(*Socket) bool { return true }

func TestEachInheritedSocketIsGivenOutOnce(t *testing.T) {
	p := &pool{sockets: newSockets(t, 50)}
	var taking sync.WaitGroup
	taken := make(chan *Socket, 1000)
	for range 10 {
		taking.Add(1)
		go func() {
			defer taking.Done()
			for {
				s := p.Take(anySocket)
				if s == nil {
					return
				}
				taken <- s
			}
		}()
	}
	taking.Wait()
	close(taken)
	seen := map[*Socket]bool{}
	for s := range taken {
		if seen[s] {
			t.Errorf("socket %s was given out twice", s.Name)
		}
		seen[s] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d sockets were given out, of 50", len(seen))
	}
}

func TestSocketsAreTakenInOrderIfTheyMatch(t *testing.T) {
	all := newSockets(t, 4)
	p := &pool{sockets: append([]*Socket(nil), all...)}
	name := func(name string) func(*Socket) bool { return func(s *Socket) bool { return s.Name == name } }
	if s := p.Take(name("2")); s != all[2] {
		t.Errorf("took %+v, want socket 2", s)
	}
	if s := p.Take(name("2")); s != nil {
		t.Errorf("took %+v, which was taken", s)
	}
	if s := p.Take(anySocket); s != all[0] {
		t.Errorf("took %+v, want the first", s)
	}
	if s := p.Find(anySocket); s != all[2] {
		t.Errorf("found %+v, want the one taken first", s)
	}
	if s := p.Find(name("1")); s != nil {
		t.Errorf("found %+v, which is not in use", s)
	}
	if got, want := names(p.all()), "1 3 2 0 "; got != want {
		t.Errorf("a successor inherits %s, want %s", got, want)
	}
}

func TestClosedSocketsAreNotPassedOn(t *testing.T) {
	all := newSockets(t, 6)
	p := &pool{sockets: append([]*Socket(nil), all[:3]...)}
	p.Take(anySocket)
	for _, s := range all[3:] {
		p.Add(s)
	}
	for _, i := range []int{0, 1, 4} {
		all[i].Open.Close()
	}
	if got, want := names(p.all()), "2 3 5 "; got != want {
		t.Errorf("a successor inherits %s, want %s", got, want)
	}
	all[5].Open.Close()
	p.Add(newSockets(t, 1)[0])
	if got, want := names(p.all()), "2 3 0 "; got != want {
		t.Errorf("a successor inherits %s, want %s", got, want)
	}
}

func TestAddedSocketsHaveNoPlaceAmongTheInherited(t *testing.T) {
	p := &pool{}
	s := newSockets(t, 1)[0]
	p.Add(s)
	if s.index >= 0 {
		t.Errorf("a socket that was opened here has place %d of those inherited", s.index)
	}
}

func TestRemovedSocketsStayHere(t *testing.T) {
	all := newSockets(t, 4)
	p := &pool{}
	for _, s := range all {
		p.Add(s)
	}
	removed := p.Remove(func(s *Socket) bool { return s.Name == "1" || s.Name == "3" })
	if got, want := names(removed), "1 3 "; got != want {
		t.Errorf("removed %s, want %s", got, want)
	}
	if got, want := names(p.all()), "0 2 "; got != want {
		t.Errorf("a successor inherits %s, want %s", got, want)
	}
	for _, s := range removed {
		if err := s.Open.Close(); err != nil {
			t.Errorf("closed by somebody else: %v", err)
		}
	}
}

func TestUnusedSocketsAreClosed(t *testing.T) {
	all := newSockets(t, 3)
	p := &pool{sockets: append([]*Socket(nil), all...)}
	p.Take(anySocket)
	if got, want := names(p.Discard()), "1 2 "; got != want {
		t.Errorf("closed %s, want %s", got, want)
	}
	for _, s := range all[1:] {
		if err := s.Open.Close(); err == nil {
			t.Errorf("socket %s was open", s.Name)
		}
	}
	if s := p.Take(anySocket); s != nil {
		t.Errorf("took %+v, which is closed", s)
	}
	if err := all[0].Open.Close(); err != nil {
		t.Errorf("the socket in use was closed: %v", err)
	}
	if more := p.Discard(); len(more) != 0 {
		t.Errorf("closed again: %s", names(more))
	}
}

func TestPoolIsSafeForConcurrentUse(t *testing.T) {
	p := &pool{sockets: newSockets(t, 20)}
	more := newSockets(t, 20)
	var using sync.WaitGroup
	for i := range 4 {
		using.Add(1)
		go func() {
			defer using.Done()
			for j := range 5 {
				p.Take(anySocket)
				s := more[i*5+j]
				p.Add(s)
				p.Find(anySocket)
				p.all()
				p.keepPaths(j%2 == 0)
				s.Open.Close()
				p.Remove(func(o *Socket) bool { return o == s })
			}
		}()
	}
	using.Wait()
	if n := len(p.all()); n != 20 {
		t.Errorf("%d sockets are left, want the 20 that were inherited", n)
	}
}
