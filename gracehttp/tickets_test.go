package gracehttp

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func TestTicketKeysRotateDailyAndLastAWeek(t *testing.T) {
	t.Parallel()
	keys := &tickets{}
	start := time.Now()
	var made []ticketKey
	for hour := range 24 * 20 {
		now := start.Add(time.Duration(hour) * time.Hour)
		keys.rotate(now)
		if newest := keys.keys[0]; len(made) == 0 || newest != made[len(made)-1] {
			made = append(made, newest)
			if hour%24 != 0 {
				t.Errorf("a new key after %d hours", hour)
			}
		}
		for i, k := range keys.keys {
			if age := now.Sub(k.Created); age >= 7*24*time.Hour {
				t.Errorf("after %d hours a key is %v old", hour, age)
			}
			if want := made[len(made)-1-i]; k != want {
				t.Errorf("after %d hours key %d is not the one made before", hour, i)
			}
		}
		if want := min(hour/24+1, 7); len(keys.keys) != want {
			t.Errorf("after %d hours there are %d keys, want %d", hour, len(keys.keys), want)
		}
	}
	if len(made) != 20 {
		t.Errorf("%d keys in 20 days", len(made))
	}
}

// A process that nobody has visited for long has no key left but a new one.
func TestTicketKeysAreForgottenAlsoWithoutVisitors(t *testing.T) {
	t.Parallel()
	keys := &tickets{}
	start := time.Now()
	keys.rotate(start)
	old := keys.keys[0]
	keys.rotate(start.Add(8 * 24 * time.Hour))
	if len(keys.keys) != 1 || keys.keys[0].Key == old.Key {
		t.Errorf("after 8 days the keys are %v", keys.keys)
	}
}

// What the successor gets is enough for the sessions of all the week.
func TestSessionsResumeWithKeysOfThePredecessor(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			predecessor := &tickets{}
			sessions := tls.NewLRUClientSessionCache(10)
			if handshake(t, predecessor, version, sessions) {
				t.Error("the first session is resumed")
			}
			if !handshake(t, predecessor, version, sessions) {
				t.Error("a session is not resumed by the process that began it")
			}
			for _, age := range []time.Duration{0, 6 * 24 * time.Hour} {
				for i := range predecessor.keys {
					predecessor.keys[i].Created = time.Now().Add(-age)
				}
				successor := &tickets{}
				if err := json.Unmarshal(predecessor.state(), &successor.keys); err != nil {
					t.Fatal(err)
				}
				successor.apply()
				if !handshake(t, successor, version, sessions) {
					t.Errorf("a session is not resumed by the successor after %v", age)
				}
				predecessor = successor
			}
			stranger := &tickets{}
			if handshake(t, stranger, version, sessions) {
				t.Error("a session is resumed by a stranger")
			}
		})
	}
}

// handshake makes a connection to a server with these keys, and reports whether
// it resumed a session.
func handshake(t *testing.T, keys *tickets, version uint16, sessions tls.ClientSessionCache) bool {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	config := &tls.Config{
		Certificates: []tls.Certificate{certificate().cert},
		WrapSession: func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
			keys.rotate(time.Now())
			return keys.config.EncryptTicket(cs, s)
		},
		UnwrapSession: func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
			keys.rotate(time.Now())
			return keys.config.DecryptTicket(identity, cs)
		},
	}
	go func() {
		c := tls.Server(far, config)
		if c.Handshake() == nil {
			c.Write([]byte("x"))
		}
	}()
	client := clientTLS()
	client.MinVersion, client.MaxVersion = version, version
	client.ClientSessionCache = sessions
	c := tls.Client(near, client)
	// A ticket of TLS 1.3 comes after the handshake.
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().DidResume
}

type keyPair struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// certificate returns one for example.com, and what a client must trust.
var certificate = sync.OnceValue(func() keyPair {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return keyPair{s.TLS.Certificates[0], pool}
})

func clientTLS(protos ...string) *tls.Config {
	return &tls.Config{RootCAs: certificate().pool, ServerName: "example.com", NextProtos: protos}
}

func TestConfigThatManagesTicketsIsLeftAlone(t *testing.T) {
	t.Parallel()
	var key [32]byte
	key[0] = 1
	configs := map[string]*tls.Config{
		"SessionTicketsDisabled": {SessionTicketsDisabled: true},
		"SessionTicketKey":       {SessionTicketKey: key},
		"SetSessionTicketKeys":   {},
		"WrapSession": {WrapSession: func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
			return nil, nil
		}},
		"UnwrapSession": {UnwrapSession: func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
			return nil, nil
		}},
		"GetConfigForClient": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }},
	}
	configs["SetSessionTicketKeys"].SetSessionTicketKeys([][32]byte{key})
	for name, config := range configs {
		srv := &http.Server{TLSConfig: config}
		keepTickets(srv, "left alone "+name)
		if srv.TLSConfig != config {
			t.Errorf("a config with %s was replaced", name)
		}
	}

	config := &tls.Config{}
	srv := &http.Server{TLSConfig: config}
	keepTickets(srv, "left alone")
	if srv.TLSConfig == config || srv.TLSConfig.WrapSession == nil || srv.TLSConfig.UnwrapSession == nil {
		t.Error("a config without its own tickets was not given ours")
	}
	if config.WrapSession != nil || config.UnwrapSession != nil {
		t.Error("the program's config itself was changed")
	}
}
