package gracehttp

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// How long crypto/tls keeps the session ticket keys that it makes by itself.
const (
	ticketKeyRotation = 24 * time.Hour
	ticketKeyLifetime = 7 * 24 * time.Hour
)

// A ticketKey encrypts TLS session tickets.
type ticketKey struct {
	Key     [32]byte
	Created time.Time
}

// tickets encrypts and decrypts session tickets with keys that successors get,
// so that their clients' sessions resume. Otherwise it does what crypto/tls does
// by itself.
type tickets struct {
	config tls.Config // only for its keys

	mu   sync.Mutex
	keys []ticketKey // newest first
}

// keepTickets makes TLS sessions of srv outlive this process, if its TLSConfig
// leaves tickets to crypto/tls. The name tells apart the servers of a process:
// sharing keys would let a session of one resume at another, whose demands on
// clients may be others.
func keepTickets(srv *http.Server, name string) {
	if managesTickets(srv.TLSConfig) {
		return
	}
	name = "tickets " + name
	t := &tickets{}
	if state := handoff.Self().State(name); state != nil {
		json.Unmarshal(state, &t.keys) // without keys, sessions begin anew
	}
	handoff.Self().Provide(name, t.state)

	config := srv.TLSConfig.Clone()
	config.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		t.rotate(time.Now())
		return t.config.EncryptTicket(cs, ss)
	}
	config.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		t.rotate(time.Now())
		return t.config.DecryptTicket(identity, cs)
	}
	t.apply()
	srv.TLSConfig = config
}

// managesTickets reports whether a config has its own idea of session tickets.
func managesTickets(c *tls.Config) bool {
	if c.SessionTicketsDisabled || c.WrapSession != nil || c.UnwrapSession != nil || c.GetConfigForClient != nil {
		return true
	}
	//lint:ignore SA1019 a config that still sets it manages tickets
	if c.SessionTicketKey != [32]byte{} {
		return true
	}
	// There is no way to ask whether SetSessionTicketKeys was called.
	keys := reflect.ValueOf(c).Elem().FieldByName("sessionTicketKeys")
	return keys.IsValid() && keys.Kind() == reflect.Slice && keys.Len() > 0
}

// rotate makes a new key when the newest is a day old, and forgets those that
// are older than a week.
func (t *tickets) rotate(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.keys) > 0 && now.Sub(t.keys[0].Created) < ticketKeyRotation {
		return
	}
	fresh := ticketKey{Created: now}
	rand.Read(fresh.Key[:]) // never fails
	t.keys = slices.DeleteFunc(append([]ticketKey{fresh}, t.keys...), func(k ticketKey) bool {
		return now.Sub(k.Created) >= ticketKeyLifetime
	})
	t.apply()
}

// apply hands the keys to crypto/tls.
func (t *tickets) apply() {
	if len(t.keys) == 0 {
		return
	}
	keys := make([][32]byte, len(t.keys))
	for i, k := range t.keys {
		keys[i] = k.Key
	}
	t.config.SetSessionTicketKeys(keys)
}

// state is what the successor finds.
func (t *tickets) state() []byte {
	t.rotate(time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	b, _ := json.Marshal(t.keys)
	return b
}
