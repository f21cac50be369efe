package traffic

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"time"
)

// authority is this process's certificate for 127.0.0.1, ::1 and localhost,
// made once.
var authority = sync.OnceValue(func() (a struct {
	cert    tls.Certificate
	certPEM []byte
	keyPEM  []byte
	pool    *x509.CertPool
}) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic("traffic: " + err.Error())
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: "graceful traffic"},
		// Wide, for the clock of a synctest bubble begins in 2000.
		NotBefore:             time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		DNSNames:              []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic("traffic: " + err.Error())
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic("traffic: " + err.Error())
	}
	a.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	a.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	a.pool = x509.NewCertPool()
	a.pool.AppendCertsFromPEM(a.certPEM)
	return a
})

// ServerTLS returns a configuration with a certificate for the loopback
// addresses that was made for this process.
func ServerTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{authority().cert}}
}

// ClientTLS returns a configuration that trusts ServerTLS's certificate, and no
// other.
func ClientTLS() *tls.Config { return &tls.Config{RootCAs: authority().pool} }

// CertPEM returns ServerTLS's certificate and key, for callers that need them as
// files.
func CertPEM() (cert, key []byte) {
	a := authority()
	return a.certPEM, a.keyPEM
}
