package graceful_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-121bbccf/graceful"
	"github.com/seed-121bbccf/graceful/internal/traffic"
)

// A recordClient is a client of TLS 1.3 that makes its records itself, from the
// secret that crypto/tls has agreed on (RFC 8446, sections 5.2 and 7). It can cut
// them anywhere, and send what crypto/tls never sends by itself.
type recordClient struct {
	*client          // reads
	below   net.Conn // is written to
	secret  []byte   // client_application_traffic_secret
	seq     uint64   // of the next record under it
}

// newRecordClient makes the handshake on nc.
func newRecordClient(t *testing.T, nc net.Conn) *recordClient {
	t.Helper()
	var keys bytes.Buffer
	config := traffic.ClientTLS()
	config.ServerName, config.NextProtos = "127.0.0.1", []string{"http/1.1"}
	config.MinVersion, config.KeyLogWriter = tls.VersionTLS13, &keys
	tc := tls.Client(nc, config)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("%s was agreed on: no AES by hardware here", tls.CipherSuiteName(suite))
	}
	c := &recordClient{client: newClient(t, tc), below: nc}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			c.secret, _ = hex.DecodeString(f[2])
		}
	}
	return c
}

// expand is HKDF-Expand-Label without a context.
func (c *recordClient) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, c.secret, string(append(info, 0)), n)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// record returns the next record, with the given content of the given type.
func (c *recordClient) record(kind byte, content string) []byte {
	block, err := aes.NewCipher(c.expand("key", 16))
	if err != nil {
		c.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		c.t.Fatal(err)
	}
	nonce := c.expand("iv", gcm.NonceSize())
	seq := binary.BigEndian.Uint64(nonce[4:]) ^ c.seq
	binary.BigEndian.PutUint64(nonce[4:], seq)
	c.seq++
	inner := append([]byte(content), kind)
	header := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+gcm.Overhead()))
	return gcm.Seal(header, nonce, inner, header)
}

func (c *recordClient) data(text string) []byte { return c.record(23, text) }

// keyUpdate returns a record that changes the client's key, and asks the server to
// change its own: the server answers by itself.
func (c *recordClient) keyUpdate() []byte {
	r := c.record(22, "\x18\x00\x00\x01\x01")
	c.secret = c.expand("traffic upd", sha256.Size)
	c.seq = 0
	return r
}

func (c *recordClient) put(b []byte) { c.below.Write(b) }

// serveRecords serves TLS in a bubble, the server's own or a listener's. Timeout is
// 0.
func serveRecords(t *testing.T, l net.Listener, beside bool, h http.Handler) *served {
	return serveTLS(t, &graceful.Server{Server: &http.Server{Handler: h}}, l, beside)
}

// TestKeyUpdate: a record that holds no data resets no clock and changes no state,
// whole or cut: clients of TLS 1.3 can send them at any time (KeyUpdate), and the
// server's answer to one is a Write without a response. A client that sent one a
// second with half a request used to hold a stop for as long as it liked.
func TestKeyUpdate(t *testing.T) {
	const half = "GET / HTTP/1.1\r\nHost: x\r\nX: "
	for _, tc := range []struct {
		name  string
		begin func(c *recordClient) // ends at the stop
		every func(c *recordClient) // again and again, from the stop on
		want  time.Duration
		ends  ends
	}{
		{"new", nil, func(c *recordClient) { c.put(c.keyUpdate()) }, 500 * ms, ends{Idle: 1}},
		{"idle", func(c *recordClient) {
			c.put(c.data(getOf("/")))
			c.expect("ok")
		}, func(c *recordClient) { c.put(c.keyUpdate()) }, 500 * ms, ends{Idle: 1}},
		{"idle, before the stop", func(c *recordClient) {
			c.put(c.data(getOf("/")))
			c.expect("ok")
			for range 4 {
				time.Sleep(100 * ms)
				c.put(c.keyUpdate())
			}
		}, func(*recordClient) {}, 100 * ms, ends{Idle: 1}},
		{"half a request", func(c *recordClient) { c.put(c.data(half)) },
			func(c *recordClient) { c.put(c.keyUpdate()) }, 5 * time.Second, ends{GaveUp: 1}},
		{"half a request, and more of it", func(c *recordClient) { c.put(c.data(half)) },
			func(c *recordClient) {
				c.put(c.keyUpdate())
				c.put(c.data("a"))
			}, 5 * time.Second, ends{GaveUp: 1}},
		{"an empty record", nil, func(c *recordClient) { c.put(c.data("")) }, 500 * ms, ends{Idle: 1}},
	} {
		for _, beside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a TLS listener %v", tc.name, beside), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveRecords(t, l, beside, text("ok"))
					c := newRecordClient(t, l.dial())
					synctest.Wait()
					if tc.begin != nil {
						tc.begin(c)
					}
					synctest.Wait()
					s.stop()
					synctest.Wait()
					for range 9 { // crypto/tls takes 16 in a row
						time.Sleep(tc.want / 6)
						tc.every(c)
					}
					if got := s.end(); got != tc.want {
						t.Errorf("over after %v, want %v\n%v", got, tc.want, s.Report())
					}
					if got := endsOf(s.Report()); got != tc.ends {
						t.Errorf("ends %+v, want %+v", got, tc.ends)
					}
				})
			})
		}
	}
}

// TestHalfKeyUpdate: part of a record may be part of a request. When it turns out
// to be none, the connection is what it was before, since when it was it: here its
// quiet window is over.
func TestHalfKeyUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newVirtListener()
		s := serveRecords(t, l, false, text("ok"))
		c := newRecordClient(t, l.dial())
		c.put(c.data(getOf("/")))
		c.expect("ok")
		synctest.Wait()
		s.stop()
		update := c.keyUpdate()
		time.Sleep(400 * ms)
		c.put(update[:9])
		time.Sleep(400 * ms)
		if got := s.Stats(); got.Receiving != 1 {
			t.Errorf("with half a record: %v", got)
		}
		c.put(update[9:])
		if got := s.end(); got != 800*ms {
			t.Errorf("over after %v\n%v", got, s.Report())
		}
		if got := endsOf(s.Report()); got != (ends{Idle: 1}) {
			t.Errorf("ends %+v", got)
		}
	})
}

// TestHalfRecord: a request whose record is cut anywhere by the stop, and by the
// end of the quiet window, is answered when the rest comes. It used not to be seen
// before its record was whole.
func TestHalfRecord(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for _, when := range []string{"before the stop", "within the quiet window"} {
			t.Run(fmt.Sprintf("kept alive %v, %s", kept, when), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newVirtListener()
					s := serveRecords(t, l, false, text("ok"))
					var clients []*recordClient
					var records [][]byte
					for range len(getOf("/")) + 22 { // header, type and tag
						c := newRecordClient(t, l.dial())
						if kept {
							c.put(c.data(getOf("/")))
							c.expect("ok")
						}
						clients = append(clients, c)
						records = append(records, c.data(getOf("/")))
					}
					if len(records) != len(records[0]) {
						t.Fatal(len(records[0]))
					}
					halves := func() {
						for cut := 1; cut < len(clients); cut++ {
							clients[cut].put(records[cut][:cut])
						}
					}
					if when == "before the stop" {
						halves()
						time.Sleep(time.Hour)
					}
					synctest.Wait()
					s.stop()
					if when != "before the stop" {
						time.Sleep(499 * ms)
						halves()
					}
					time.Sleep(2 * time.Second)
					for cut := 1; cut < len(clients); cut++ {
						clients[cut].put(records[cut][cut:])
						if got := clients[cut].expect("ok"); !got.close {
							t.Errorf("cut at %d: the response does not say close", cut)
						}
					}
					s.end()
					if took := time.Since(s.stopAt); took > 3*time.Second {
						t.Errorf("over after %v", took)
					}
					want := ends{Idle: 1, Finished: len(clients) - 1}
					if got := endsOf(s.Report()); got != want {
						t.Errorf("ends %+v, want %+v", got, want)
					}
				})
			})
		}
	}
}
