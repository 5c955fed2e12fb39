package dev.pidone.secured;

import java.nio.charset.StandardCharsets;
import java.util.Base64;

import jakarta.servlet.http.HttpServletRequest;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.netflix.eureka.server.EnableEurekaServer;
import org.springframework.context.annotation.Bean;
import org.springframework.security.config.Customizer;
import org.springframework.security.config.annotation.web.builders.HttpSecurity;
import org.springframework.security.core.userdetails.User;
import org.springframework.security.core.userdetails.UserDetailsService;
import org.springframework.security.provisioning.InMemoryUserDetailsManager;
import org.springframework.security.web.SecurityFilterChain;

/**
 * Spring Cloud's Eureka server with basic authentication, as Spring's reference recommends it: without protection against
 * CSRF for pods. The user "strict" has that protection, as all have it where nobody has changed the default.
 */
@SpringBootApplication
@EnableEurekaServer
public class Application {

    public static void main(String[] args) {
        SpringApplication.run(Application.class, args);
    }

    @Bean
    SecurityFilterChain filters(HttpSecurity http) throws Exception {
        return http
            .csrf(csrf -> csrf.ignoringRequestMatchers(request -> !"strict".equals(user(request))))
            .authorizeHttpRequests(requests -> requests.anyRequest().authenticated())
            .httpBasic(Customizer.withDefaults())
            .build();
    }

    @Bean
    UserDetailsService users() {
        return new InMemoryUserDetailsManager(
            User.withUsername("pods").password("{noop}right").build(),
            User.withUsername("strict").password("{noop}right").build());
    }

    private static String user(HttpServletRequest request) {
        String given = request.getHeader("Authorization");
        if (given == null || !given.startsWith("Basic ")) {
            return "";
        }
        byte[] text = Base64.getDecoder().decode(given.substring("Basic ".length()));
        return new String(text, StandardCharsets.UTF_8).split(":")[0];
    }
}
