package restarttest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Line is a connection to a chat: messages go both ways, whole.
type Line interface {
	Send(message string) error
	Receive() (string, error)
	Close() error
}

// A Chat is rooms full of clients. Each sends numbers in order, and hears those of all in
// its room, its own too.
type Chat struct {
	t       *testing.T
	rooms   int
	clients []*chatter
	stop    chan struct{}
	talking sync.WaitGroup
	hearing sync.WaitGroup
	changed chan struct{}

	mu sync.Mutex // guards the clients
}

type chatter struct {
	line  Line
	room  int
	name  string
	here  int            // how many have come since it has, itself included
	sent  int            // the last number
	heard map[string]int // the last number of each
	err   error          // which ended it
}

// inRoom is how many share a room.
const inRoom = 10

// StartChat has so many clients connect. Each sends a number every pause.
func StartChat(t *testing.T, clients int, pause time.Duration, dial func() (Line, error)) *Chat {
	t.Helper()
	c := &Chat{t: t, rooms: clients / inRoom, stop: make(chan struct{}), changed: make(chan struct{}, 1)}
	for i := range clients {
		line, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		one := &chatter{line: line, room: i % c.rooms, name: fmt.Sprint("client", i), heard: map[string]int{}}
		c.clients = append(c.clients, one)
		if err := line.Send(fmt.Sprintf("room%d %s", one.room, one.name)); err != nil {
			t.Fatal(err)
		}
		c.hearing.Add(1)
		go c.hear(one)
		c.until(one.name+" to be in its room", func() bool { return one.here > 0 || one.err != nil })
	}
	t.Cleanup(func() {
		for _, one := range c.clients {
			one.line.Close()
		}
		c.hearing.Wait()
	})
	for i, one := range c.clients {
		c.talking.Add(1)
		go c.talk(one, pause, pause*time.Duration(i)/time.Duration(clients))
	}
	return c
}

func (c *Chat) talk(one *chatter, pause, first time.Duration) {
	defer c.talking.Done()
	next := first
	for {
		select {
		case <-c.stop:
			return
		case <-time.After(next):
		}
		next = pause
		c.mu.Lock()
		if one.err != nil {
			c.mu.Unlock()
			return
		}
		one.sent++
		n := one.sent
		c.mu.Unlock()
		if one.line.Send(fmt.Sprint(n)) != nil {
			return // hear says why
		}
	}
}

func (c *Chat) hear(one *chatter) {
	defer c.hearing.Done()
	for {
		message, err := one.line.Receive()
		c.mu.Lock()
		if err == nil {
			err = one.note(message)
		}
		one.err = err
		c.mu.Unlock()
		select {
		case c.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// note checks that nothing comes twice, is missing, or is out of order.
func (one *chatter) note(message string) error {
	if strings.HasSuffix(message, " is here") {
		one.here++
		return nil
	}
	name, text, _ := strings.Cut(message, ": ")
	n := 0
	if _, err := fmt.Sscan(text, &n); err != nil || n != one.heard[name]+1 {
		return fmt.Errorf("after %d of %s it hears %q", one.heard[name], name, message)
	}
	one.heard[name] = n
	return nil
}

// until waits until done, which is called with the lock held, reports true.
func (c *Chat) until(what string, done func() bool) {
	c.t.Helper()
	timeout := time.After(Patience)
	for {
		c.mu.Lock()
		ok := done()
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-c.changed:
		case <-timeout:
			c.t.Fatalf("waited %v for %s", Patience, what)
		}
	}
}

// More waits until n more messages have come back to who has sent them.
func (c *Chat) More(n int) {
	c.t.Helper()
	back := func() (sum int) {
		for _, one := range c.clients {
			sum += one.heard[one.name]
		}
		return sum
	}
	c.mu.Lock()
	want := back() + n
	c.mu.Unlock()
	c.until(fmt.Sprintf("%d more messages", n), func() bool { return back() >= want })
}

// Disconnected returns those whose connection has ended, or that have heard something
// wrong, and why.
func (c *Chat) Disconnected() (all []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.clients {
		if one.err != nil {
			all = append(all, fmt.Errorf("%s: %w", one.name, one.err))
		}
	}
	return all
}

// End ends the talk. Whatever was said must then have been heard by all in the room,
// once and in order. It returns how many messages were sent.
func (c *Chat) End() (sent int) {
	c.t.Helper()
	close(c.stop)
	c.talking.Wait()
	c.until("all messages to be heard", func() bool {
		for _, one := range c.clients {
			for _, other := range c.clients {
				if one.room == other.room && one.err == nil && other.err == nil && one.heard[other.name] < other.sent {
					return false
				}
			}
		}
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.clients {
		sent += one.sent
	}
	return sent
}
