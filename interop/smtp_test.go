package interop

import (
	"errors"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gosmtp "github.com/emersion/go-smtp"

	"github.com/seed-121bbccf/graceful"
)

// TestGoSMTP: SMTP has a farewell, the reply 421 (RFC 5321, section 3.8), which
// tells the client to come again. With it no mail is lost, and none is delivered
// twice: in a transaction the connection is busy.
func TestGoSMTP(t *testing.T) {
	var box mailbox
	var sentAway atomic.Int64
	l := play(t, func() server {
		s := gosmtp.NewServer(&box)
		s.Domain = "server"
		l := graceful.NewListener(listen(t))
		l.IdleGrace = grace
		l.OnDrain = func(nc net.Conn) { io.WriteString(nc, "421 4.3.2 server is shutting down\r\n") }
		g := newGroup()
		g.Add("smtp", l, func() error { return s.Serve(l) })
		return start(t, l.Addr().String(), g)
	}, func(l *load, n int) {
		for i := 0; !l.ended(); {
			nc, err := l.dial()
			if err != nil {
				l.exchange(err)
				return
			}
			c, err := smtp.NewClient(nc, "server")
			for err == nil && !l.ended() {
				if err = send(c, message(n, i)); err == nil {
					l.exchange(nil)
					i++
				}
			}
			var reply *textproto.Error
			switch {
			case errors.As(err, &reply) && reply.Code == 421:
				sentAway.Add(1)
			case err != nil:
				l.exchange(err)
			}
			nc.Close()
		}
	})
	l.wantNoLoss()
	box.mu.Lock()
	defer box.mu.Unlock()
	for m, times := range box.mails {
		if times != 1 {
			t.Errorf("%s was delivered %d times", m, times)
		}
	}
	if len(box.mails) != l.done {
		t.Errorf("%d mails were delivered, %d acknowledged", len(box.mails), l.done)
	}
	t.Logf("%d connections ended with 421", sentAway.Load())
}

func send(c *smtp.Client, m string) error {
	if err := c.Mail("from@example.com"); err != nil {
		return err
	}
	if err := c.Rcpt("to@example.com"); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	io.WriteString(w, m)
	return w.Close()
}

// A mailbox is go-smtp's backend. It counts the mails.
type mailbox struct {
	mu    sync.Mutex
	mails map[string]int
}

func (b *mailbox) NewSession(c *gosmtp.Conn) (gosmtp.Session, error) {
	return &mailSession{box: b, conn: c.Conn(), done: func() {}}, nil
}

// A mailSession keeps its connection busy from MAIL to the reply to DATA,
// after which go-smtp calls Reset: between two commands of a transaction a
// farewell would be taken for the reply to the next one.
type mailSession struct {
	box  *mailbox
	conn net.Conn
	done func() // the transaction's
}

func (s *mailSession) Mail(string, *gosmtp.MailOptions) error {
	s.done = graceful.Busy(s.conn)
	return nil
}

func (s *mailSession) Rcpt(string, *gosmtp.RcptOptions) error { return nil }

func (s *mailSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	if s.box.mails == nil {
		s.box.mails = map[string]int{}
	}
	s.box.mails[strings.TrimSpace(string(b))]++
	return nil
}

func (s *mailSession) Reset()        { s.done() }
func (s *mailSession) Logout() error { s.done(); return nil }
