// A chat over TCP whose clients stay connected over restarts. A line is a message. The
// first one of a client names its room and itself, as in "kitchen alice"; all that follow
// go to everybody in the room.
//
// In a restart the old process stops saying anything, and moves each connection with what
// it knows of it: room, name, and lines that it has read and not said. Who arrives in the
// new process is told first what was said there before.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	var n gracenet.Net
	inherited, err := n.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	l := grace.NewListener(inherited.(grace.Listener))
	ch := &chat{clients: map[*client]bool{}, said: map[string][]string{}}
	ch.process = grace.Process{OnMove: ch.arrive, OnDrain: ch.depart}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go ch.add(&client{conn: conn})
		}
	}()
	if err := ch.process.CloseParent(); err != nil {
		log.Fatal(err)
	}
	log.Printf("serving %v with pid %d", l.Addr(), os.Getpid())
	if err := ch.process.Wait([]grace.Listener{l}); err != nil {
		log.Fatal(err)
	}
}

type chat struct {
	process grace.Process

	mu      sync.Mutex // guards what follows, and is held while something is said
	clients map[*client]bool
	said    map[string][]string // in each room, of late, in this process
	departs int                 // how often all were to move
}

// A client is a connection and its state. What has no lock is owned by its goroutine.
type client struct {
	conn  net.Conn
	stays int // of chat.departs, the one in which it could not move; guarded by chat.mu

	Room, Name string
	Unsaid     []byte // has come, and is to be said
}

// add serves a client until it leaves or has moved.
func (ch *chat) add(c *client) {
	ch.mu.Lock()
	ch.clients[c] = true
	for _, text := range ch.said[c.Room] {
		c.hear(text)
	}
	ch.mu.Unlock()
	defer func() {
		ch.mu.Lock()
		delete(ch.clients, c)
		ch.mu.Unlock()
	}()

	b := make([]byte, 4096)
	for {
		for ch.say(c) {
		}
		if departure, ok := ch.moves(c); ok {
			state, _ := json.Marshal(c)
			err := ch.process.Move(c.conn, state)
			if err == nil {
				return
			}
			if errors.Is(err, grace.ErrStopping) {
				c.conn.Close()
				return
			}
			ch.stay(c, departure) // nobody takes it: it is served here
			continue
		}
		n, err := c.conn.Read(b)
		c.Unsaid = append(c.Unsaid, b[:n]...)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.conn.Close()
			return
		}
	}
}

// say says a line of the client's to the room. It reports false if there is none, or if
// it is for the successor to say.
func (ch *chat) say(c *client) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	line, rest, whole := bytes.Cut(c.Unsaid, []byte("\n"))
	if !whole || ch.departs != c.stays {
		return false
	}
	text := c.Name + ": " + string(line)
	if c.Name == "" {
		if _, err := fmt.Sscan(string(line), &c.Room, &c.Name); err != nil {
			c.conn.Close() // which ends its Read
			return false
		}
		text = c.Name + " is here"
	}
	c.Unsaid = bytes.Clone(rest)
	said := append(ch.said[c.Room], text)
	ch.said[c.Room] = said[max(0, len(said)-1000):]
	for other := range ch.clients {
		if other.Room == c.Room {
			other.hear(text)
		}
	}
	return true
}

func (c *client) hear(text string) {
	c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c.conn, text); err != nil {
		c.conn.Close() // which ends its Read
	}
}

// depart has all clients move, those too that are about to connect. A Read that waits
// ends, and has read nothing.
func (ch *chat) depart() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.departs++
	for c := range ch.clients {
		c.conn.SetReadDeadline(time.Now())
	}
}

func (ch *chat) moves(c *client) (departure int, ok bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.departs, ch.departs != c.stays
}

// stay keeps a client that could not move in this departure.
func (ch *chat) stay(c *client, departure int) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	c.stays = departure
	if departure == ch.departs {
		c.conn.SetReadDeadline(time.Time{})
	}
}

// arrive is depart in the successor.
func (ch *chat) arrive(conn net.Conn, state []byte) {
	c := &client{conn: conn}
	if err := json.Unmarshal(state, c); err != nil {
		log.Print(err)
		conn.Close()
		return
	}
	ch.add(c)
}
