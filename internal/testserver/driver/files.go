//go:build unix

package driver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Faults is a directory for the flag -faults: a fault is played while its file
// is there.
type Faults string

// NewFaults returns one that is removed with the test.
func NewFaults(tb testing.TB) Faults { return Faults(tb.TempDir()) }

// Set has processes that are started from now on play the fault.
func (f Faults) Set(tb testing.TB, fault string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(string(f), fault), nil, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Clear undoes Set.
func (f Faults) Clear(tb testing.TB, fault string) {
	tb.Helper()
	if err := os.Remove(filepath.Join(string(f), fault)); err != nil {
		tb.Fatal(err)
	}
}

// A Link is a symlink to a program, as a deployment moves it.
type Link string

// NewLink returns a link to a program in a directory of its own.
func NewLink(tb testing.TB, program string) Link {
	tb.Helper()
	l := Link(filepath.Join(tb.TempDir(), "server"))
	l.Move(tb, program)
	return l
}

// Move lets the link lead to another program, in one step.
func (l Link) Move(tb testing.TB, program string) {
	tb.Helper()
	next := string(l) + ".next"
	if err := os.Symlink(program, next); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(next, string(l)); err != nil {
		tb.Fatal(err)
	}
}

// Certificate makes a certificate for localhost and 127.0.0.1. It returns the
// files for the flags -cert and -key, and what a client must trust.
func Certificate(tb testing.TB) (cert, key string, pool *x509.CertPool) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		tb.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	dir := tb.TempDir()
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret), pool
}
